//! Sessions: what is remembered of a browser between its requests, kept where every instance finds it.
//!
//! The store's trait is that of `tower-sessions`. The middleware is our own, because it must choose `Secure` and
//! the lifetime for each request, answer a failing store with our page, and leave the cookie alone when nothing
//! about it changed: two requests of one browser may be under way at once, and the slower must not put back the
//! id that a login has just replaced.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod redis_cluster;
pub mod sqlite;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
pub use tower_sessions_core::{Session, SessionStore};
use tower_sessions_core::{
    session::{Expiry, Id, Record},
    session_store,
};

use crate::{
    App,
    data::{UserKey, UserName},
    error::{Error, StoreError},
    layers::Client,
};

/// Any store, as one type: what [`Session`] can hold.
#[derive(Clone, Debug)]
pub struct SharedStore(pub Arc<dyn SessionStore>);

#[async_trait]
impl SessionStore for SharedStore {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        self.0.create(record).await
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.0.save(record).await
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        self.0.load(id).await
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.0.delete(id).await
    }
}

/// How long sessions last after their last use.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub member: Duration,
    /// For visitors who are not logged in: short, because anyone can make one by leaving out the cookie.
    pub visitor: Duration,
}

/// Gives the request its session, and saves what the request changed about it before the answer leaves.
pub async fn keep(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let secure = request.extensions().get::<Client>().is_some_and(|client| client.tls);
    let sent = cookie(request.headers());
    let session = Session::new(sent, Arc::new(app.sessions.clone()), None);
    request.extensions_mut().insert(session.clone());

    let response = next.run(request).await;

    match finish(&app, &session, sent, response.status().is_server_error()).await {
        Ok(None) => response,
        Ok(Some(change)) => {
            let mut response = response;
            response.headers_mut().append(header::SET_COOKIE, change.header(secure));
            response
        }
        Err(error) => Error::from(error).into_response(),
    }
}

async fn finish(
    app: &App,
    session: &Session,
    sent: Option<Id>,
    failed: bool,
) -> Result<Option<CookieChange>, StoreError> {
    if failed {
        return Ok(None);
    }
    if !session.is_modified() && !used_after_long(session, app.settings.lifetimes.member).await {
        return Ok(None);
    }
    if session.is_empty().await {
        return Ok(sent.map(|_| CookieChange::Remove));
    }
    let member = signed_in(session).await?.is_some();
    let lifetime = if member { app.settings.lifetimes.member } else { app.settings.lifetimes.visitor };
    let lifetime = time::Duration::try_from(lifetime).unwrap_or(time::Duration::weeks(2));
    session.set_expiry(Some(Expiry::OnInactivity(lifetime)));
    let renewed = renew_if_due(session, lifetime).await?;
    session.save().await?;
    let id = session.id();
    if sent.is_none() || id != sent {
        app.metrics.sessions_created.inc();
    }
    // The cookie lasts twice as long as the session: it is sent anew only now and then.
    Ok((renewed || id != sent).then_some(id).flatten().map(|id| CookieChange::Set { id, lifetime: lifetime * 2 }))
}

/// Whether a member who only reads should have the session prolonged. Not knowing is no.
async fn used_after_long(session: &Session, lifetime: Duration) -> bool {
    if session.id().is_none() || !matches!(signed_in(session).await, Ok(Some(_))) {
        return false;
    }
    let renewed: Option<i64> = session.get(RENEWED).await.ok().flatten();
    let age = renewed.map(|at| OffsetDateTime::now_utc().unix_timestamp() - at);
    age.is_some_and(|age| u64::try_from(age).is_ok_and(|age| age > lifetime.as_secs() / 10))
}

/// Notes the time of the last renewal; true once a tenth of the lifetime has passed since.
async fn renew_if_due(session: &Session, lifetime: time::Duration) -> Result<bool, StoreError> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let renewed: Option<i64> = session.get(RENEWED).await?;
    let due = renewed.is_none_or(|at| now - at > lifetime.whole_seconds() / 10);
    if due {
        session.insert(RENEWED, now).await?;
    }
    Ok(due)
}

enum CookieChange {
    Set { id: Id, lifetime: time::Duration },
    Remove,
}

impl CookieChange {
    fn header(&self, secure: bool) -> HeaderValue {
        let secure = if secure { "; Secure" } else { "" };
        let cookie = match self {
            Self::Set { id, lifetime } => {
                let age = lifetime.whole_seconds();
                format!("{COOKIE}={id}; Path=/; Max-Age={age}; HttpOnly; SameSite=Lax{secure}")
            }
            Self::Remove => format!("{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax{secure}"),
        };
        HeaderValue::try_from(cookie).expect("an id is base64 and the rest is ours")
    }
}

/// The session id that the browser sent, if it is one.
fn cookie(headers: &HeaderMap) -> Option<Id> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then(|| value.parse().ok()).flatten())
}

/// Who is logged in, as the session remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: UserName,
}

impl Member {
    pub fn key(&self) -> UserKey {
        self.name.key()
    }
}

/// Makes the session that of `member`, under a new id, so that an id known before the login is worth nothing.
pub async fn sign_in(session: &Session, member: &Member) -> Result<(), StoreError> {
    session.cycle_id().await?;
    session.remove_value(RENEWED).await?;
    Ok(session.insert(MEMBER, member).await?)
}

pub async fn sign_out(session: &Session) -> Result<(), StoreError> {
    Ok(session.flush().await?)
}

pub async fn signed_in(session: &Session) -> Result<Option<Member>, StoreError> {
    Ok(session.get(MEMBER).await?)
}

/// How often this session has seen the home page, and who answered of late.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visits {
    pub count: u64,
    /// Instances by name, the latest first.
    pub answered: VecDeque<String>,
}

impl Visits {
    pub const REMEMBERED: usize = 24;

    /// Counts one more visit, answered by `instance`.
    pub async fn count(session: &Session, instance: &str) -> Result<Self, StoreError> {
        let mut visits: Self = session.get(VISITS).await?.unwrap_or_default();
        visits.count += 1;
        visits.answered.push_front(instance.to_owned());
        visits.answered.truncate(Self::REMEMBERED);
        session.insert(VISITS, &visits).await?;
        Ok(visits)
    }
}

/// A post that was being written when its author turned out to be logged out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub text: String,
    pub alt: String,
}

impl Draft {
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.alt.is_empty()
    }

    pub async fn keep(&self, session: &Session) -> Result<(), StoreError> {
        Ok(session.insert(DRAFT, self).await?)
    }

    pub async fn kept(session: &Session) -> Result<Option<Self>, StoreError> {
        Ok(session.get(DRAFT).await?)
    }

    pub async fn discard(session: &Session) -> Result<(), StoreError> {
        // Removing what is not there would count as a change and cost a write.
        if Self::kept(session).await?.is_some() {
            session.remove_value(DRAFT).await?;
        }
        Ok(())
    }
}

/// Whoever asks, for pages that anyone may see. Never refuses: a store out of reach makes a stranger, and says so.
#[derive(Clone, Debug, Default)]
pub struct Visitor {
    pub member: Option<Member>,
    pub sessions_out_of_reach: bool,
}

impl<S: Send + Sync> FromRequestParts<S> for Visitor {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let Some(session) = parts.extensions.get::<Session>() else {
            return Ok(Self::default());
        };
        match signed_in(session).await {
            Ok(member) => Ok(Self { member, sessions_out_of_reach: false }),
            Err(error) => {
                tracing::warn!(%error, "session could not be read, the page is shown without it");
                Ok(Self { member: None, sessions_out_of_reach: true })
            }
        }
    }
}

/// Someone logged in, for pages that need it. Others are sent to log in, and back to the page they wanted.
impl<S: Send + Sync> FromRequestParts<S> for Member {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        let session = parts.extensions.get::<Session>().ok_or_else(|| Error::internal("no session layer"))?;
        let next = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        signed_in(session).await?.ok_or_else(|| Error::LoginNeeded { next: next.to_owned() })
    }
}

/// The cookie's name says nothing about what is behind it.
const COOKIE: &str = "id";
const MEMBER: &str = "member";
const VISITS: &str = "visits";
const DRAFT: &str = "draft";
const RENEWED: &str = "renewed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_id_is_found_among_other_cookies() {
        let id = Id::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, format!("theme=dark; id={id}; x=y").parse().unwrap());
        assert_eq!(cookie(&headers), Some(id));
    }

    #[test]
    fn a_malformed_id_is_no_id() {
        for value in ["id=", "id=short", "id=!!!!", "identity=AAAAAAAAAAAAAAAAAAAAAA"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, value.parse().unwrap());
            assert_eq!(cookie(&headers), None, "{value}");
        }
    }

    #[test]
    fn cookies_are_kept_from_scripts_and_other_sites() {
        let change = CookieChange::Set { id: Id::default(), lifetime: time::Duration::hours(1) };
        let plain = change.header(false);
        let plain = plain.to_str().unwrap();
        assert!(plain.contains("; HttpOnly") && plain.contains("; SameSite=Lax") && plain.contains("Max-Age=3600"));
        assert!(!plain.contains("Secure"));
        assert!(change.header(true).to_str().unwrap().ends_with("; Secure"));
    }
}
