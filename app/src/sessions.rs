//! Sessions: what is remembered of a browser between its requests, kept where every instance finds it.
//!
//! What a request sees of its session is `tower-sessions`' [`Session`]. The store's trait and the middleware are our
//! own. The store has to say what became of a session that ended meanwhile, and keeps lists and counts beside it. The
//! middleware chooses `Secure` and the lifetime for each request, answers a failing store with our page, and never puts
//! back the id that a login has just replaced, though two requests of one browser may be under way at once.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
pub mod redis_cluster;
pub mod sqlite;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header, request::Parts};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
pub use tower_sessions_core::{
    Session,
    session::{Id, Record},
};
use tower_sessions_core::{session::Expiry, session_store};

use crate::{
    App,
    data::{UserKey, UserName},
    error::{Error, StoreError},
    layers::Client,
};

pub type Result<T> = std::result::Result<T, StoreError>;

/// Keeps sessions for every instance, and beside them short lists and counts.
///
/// - **Visibility:** whatever is finished is seen through every instance at once.
/// - **Ended** sessions stay so: [`save`](Self::save) never brings one back, and for [`ENDED_FOR`] the store still knows
///   that there was one.
/// - **Repeatable:** each operation may be sent again, by a retry here, and has the effect of one; only a
///   [`count`](Self::count) whose answer was lost may count twice.
/// - A dropped future leaves its operation either done or not done, never half done.
#[async_trait]
pub trait SessionStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps a new session. False if its id is taken, be it by an attempt of this very call whose answer was lost.
    async fn create(&self, record: &Record) -> Result<bool>;

    /// Replaces a session. False if there is none, or no more.
    async fn save(&self, record: &Record) -> Result<bool>;

    async fn load(&self, id: &Id) -> Result<Loaded>;

    /// Ends a session. That there is none is no error.
    async fn delete(&self, id: &Id) -> Result<()>;

    /// Puts `entry` at the end of the list `name`, where it may stand already, and keeps the list for `lifetime` from now
    /// on. Gives the whole list.
    async fn enrol(&self, name: &str, entry: &str, lifetime: Duration) -> Result<Vec<String>>;

    /// The list `name`; empty if there is none.
    async fn list(&self, name: &str) -> Result<Vec<String>>;

    /// Takes entries off the list `name`.
    async fn strike(&self, name: &str, entries: &[String]) -> Result<()>;

    /// Counts one more under `name`. The count begins anew when `window` has passed since the first.
    async fn count(&self, name: &str, window: Duration) -> Result<Count>;

    /// Takes back one that was counted in the present window; nothing if it is over.
    async fn uncount(&self, name: &str) -> Result<()>;

    /// How much of the store can be reached; an error if none.
    async fn reach(&self) -> Result<Reach>;
}

/// What is under an id.
#[derive(Clone, Debug, PartialEq)]
pub enum Loaded {
    Session(Record),
    /// A session that was ended within the last [`ENDED_FOR`].
    Ended,
    Nothing,
}

impl Loaded {
    pub fn session(self) -> Option<Record> {
        match self {
            Self::Session(record) => Some(record),
            Self::Ended | Self::Nothing => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// This one included.
    pub number: u32,
    /// Until the count begins anew.
    pub left: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    Whole,
    /// Some sessions cannot be reached, by whichever instance. Says which part.
    Part(String),
}

/// The store as one request's [`Session`] uses it: holds members to their number of sessions, and notes what became of
/// the session that the browser has sent.
#[derive(Debug)]
struct OfRequest {
    store: Arc<dyn SessionStore>,
    limits: Limits,
    /// The session at hand was ended while the request was under way, or a little earlier.
    ended: AtomicBool,
}

impl OfRequest {
    fn note_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl session_store::SessionStore for OfRequest {
    /// A member's session is short-lived until it is on the member's list. Whoever gives up on the way, or loses its place
    /// to logins at the same time, leaves nothing behind that nobody counts.
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        self.ended.store(false, Ordering::Relaxed);
        let (member, expiry_date) = (member_of(record), record.expiry_date);
        if member.is_some() {
            record.expiry_date = expiry_date.min(OffsetDateTime::now_utc() + UNLISTED_FOR);
        }
        while !self.store.create(record).await? {
            // Nobody was told this id, so what may be there is left to expire.
            record.id = Id::default();
        }
        if let Some(member) = member {
            admit(&*self.store, &member, &record.id, self.limits).await?;
            record.expiry_date = expiry_date;
            self.save(record).await?;
        }
        Ok(())
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        if !self.store.save(record).await? {
            self.note_ended();
        }
        Ok(())
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        let loaded = self.store.load(id).await?;
        if loaded == Loaded::Ended {
            self.note_ended();
        }
        Ok(loaded.session())
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        Ok(self.store.delete(id).await?)
    }
}

impl From<StoreError> for session_store::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Backend(error.to_string()),
            StoreError::Corrupt(_) => Self::Decode(error.to_string()),
        }
    }
}

/// Puts a session on its member's list, and ends those that are too many: first those that have ended by themselves,
/// then those not used for longest.
async fn admit(store: &dyn SessionStore, member: &UserKey, id: &Id, limits: Limits) -> Result<()> {
    let list = list_of(member);
    let listed = store.enrol(&list, &id.to_string(), limits.lifetimes.member * 2).await?;
    let most = limits.sessions_per_member;
    if listed.len() <= most {
        return Ok(());
    }
    let (mut alive, mut gone) = (Vec::new(), Vec::new());
    for entry in listed {
        let session = match entry.parse() {
            Ok(id) => store.load(&id).await?.session(),
            Err(_) => None,
        };
        if session.is_some() { &mut alive } else { &mut gone }.push(entry);
    }
    let surplus = alive.len().saturating_sub(most);
    // Of two who do this at once, both end the same sessions; perhaps that of one of them.
    for entry in alive.into_iter().take(surplus) {
        // In this order: what is off the list has ended, though this be given up here.
        if let Ok(id) = entry.parse() {
            store.delete(&id).await?;
        }
        gone.push(entry);
    }
    store.strike(&list, &gone).await
}

fn member_of(record: &Record) -> Option<UserKey> {
    let member: Member = serde_json::from_value(record.data.get(MEMBER)?.clone()).ok()?;
    Some(member.key())
}

fn list_of(member: &UserKey) -> String {
    format!("sessions:{}", member.as_str())
}

/// How long sessions last after their last use.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    pub member: Duration,
    /// For visitors who are not logged in: short, because anyone can make one by leaving out the cookie.
    pub visitor: Duration,
}

/// How many sessions there may be, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub lifetimes: Lifetimes,
    /// Beyond it those go that were not used for longest.
    pub sessions_per_member: usize,
}

/// Gives the request its session, and saves what the request changed about it before the answer leaves.
pub async fn keep(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let secure = request.extensions().get::<Client>().is_some_and(|client| client.tls);
    let sent = cookie(request.headers(), COOKIE);
    let store = Arc::new(OfRequest {
        store: Arc::clone(&app.sessions),
        limits: app.settings.sessions,
        ended: AtomicBool::new(false),
    });
    let session = Session::new(sent, Arc::clone(&store), None);
    request.extensions_mut().insert(session.clone());

    let response = next.run(request).await;

    match finish(&app, &store, &session, sent, response.status().is_server_error()).await {
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
    store: &OfRequest,
    session: &Session,
    sent: Option<Id>,
    failed: bool,
) -> Result<Option<CookieChange>> {
    if failed {
        return Ok(None);
    }
    let limits = app.settings.sessions;
    if !session.is_modified() && !used_after_long(session, limits.lifetimes.member).await {
        return Ok(None);
    }
    if session.is_empty().await {
        return Ok(sent.map(|_| CookieChange::Remove));
    }
    let member = signed_in(session).await?;
    if member.is_none() && store.is_ended() {
        // Another request of this browser has logged in or out. A new session for a mere visit would take the place of
        // the cookie that the other one has set.
        return Ok(None);
    }
    let lifetime = if member.is_some() { limits.lifetimes.member } else { limits.lifetimes.visitor };
    let expiry = time::Duration::try_from(lifetime).unwrap_or(time::Duration::weeks(2));
    session.set_expiry(Some(Expiry::OnInactivity(expiry)));
    let renewed = renew_if_due(session, expiry).await?;
    if let (true, Some(member), Some(id)) = (renewed, &member, session.id()) {
        admit(&*app.sessions, &member.key(), &id, limits).await?;
    }
    session.save().await?;
    let id = session.id().filter(|id| sent != Some(*id));
    if id.is_some() {
        app.metrics.sessions_created.inc();
    }
    // Told once, and never again: an answer that was overtaken by that of a login must not bring back the former id. And
    // not at all if it has ended by now.
    Ok(id
        .filter(|_| member.is_none() || !store.is_ended())
        .map(|id| CookieChange::Set { id, member: member.is_some() }))
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
async fn renew_if_due(session: &Session, lifetime: time::Duration) -> Result<bool> {
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let renewed: Option<i64> = session.get(RENEWED).await?;
    let due = renewed.is_none_or(|at| now - at > lifetime.whole_seconds() / 10);
    if due {
        session.insert(RENEWED, now).await?;
    }
    Ok(due)
}

enum CookieChange {
    Set { id: Id, member: bool },
    Remove,
}

impl CookieChange {
    fn header(&self, secure: bool) -> HeaderValue {
        match self {
            // The session ends in the store; its cookie is as good as any for as long as browsers keep one.
            Self::Set { id, member: true } => set_cookie(COOKIE, &id.to_string(), "/", Some(LONGEST_COOKIE), secure),
            Self::Set { id, member: false } => set_cookie(COOKIE, &id.to_string(), "/", None, secure),
            Self::Remove => set_cookie(COOKIE, "", "/", Some(Duration::ZERO), secure),
        }
    }
}

/// A cookie for this site alone, out of reach of scripts; without `age` until the browser closes.
pub fn set_cookie(name: &str, value: &str, path: &str, age: Option<Duration>, secure: bool) -> HeaderValue {
    let age = age.map_or_else(String::new, |age| format!("; Max-Age={}", age.as_secs()));
    let secure = if secure { "; Secure" } else { "" };
    let cookie = format!("{name}={value}; Path={path}{age}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(cookie).expect("ids and rows are plain ASCII and the rest is ours")
}

/// The id that the browser sent in the cookie `name`, if it is one.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<Id> {
    cookies(headers, name).find_map(|value| value.parse().ok())
}

/// What the browser sent in cookies of this name.
pub fn cookies<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(move |(found, _)| *found == name)
        .map(|(_, value)| value)
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
pub async fn sign_in(session: &Session, member: &Member) -> Result<()> {
    session.cycle_id().await?;
    session.remove_value(RENEWED).await?;
    Ok(session.insert(MEMBER, member).await?)
}

/// Ends the session.
pub async fn sign_out(store: &dyn SessionStore, session: &Session) -> Result<()> {
    let (member, id) = (signed_in(session).await?, session.id());
    session.flush().await?;
    if let (Some(member), Some(id)) = (member, id)
        // Its place on the list is free again. If not: whoever needs the place finds that nobody has it.
        && let Err(error) = store.strike(&list_of(&member.key()), &[id.to_string()]).await
    {
        tracing::debug!(%error, "a session that has ended stays listed");
    }
    Ok(())
}

pub async fn signed_in(session: &Session) -> Result<Option<Member>> {
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
    pub async fn count(session: &Session, instance: &str) -> Result<Self> {
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
    /// Bytes that are kept; a post with every character that it may have can be somewhat longer.
    pub const LONGEST: usize = 8 * 1024;

    pub fn length(&self) -> usize {
        self.text.len() + self.alt.len()
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.alt.is_empty()
    }

    pub async fn keep(&self, session: &Session) -> Result<()> {
        Ok(session.insert(DRAFT, self).await?)
    }

    pub async fn kept(session: &Session) -> Result<Option<Self>> {
        Ok(session.get(DRAFT).await?)
    }

    pub async fn discard(session: &Session) -> Result<()> {
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

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Error> {
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

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Error> {
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
/// How long it is known of a session that it was ended: longer than any request of the same browser is under way.
pub const ENDED_FOR: Duration = Duration::from_secs(600);
/// How long a member's session lasts that is not on the member's list yet: longer than it takes to get there.
const UNLISTED_FOR: time::Duration = time::Duration::minutes(2);
/// Browsers cut off what is longer: 400 days (RFC 6265bis, section 5.5).
const LONGEST_COOKIE: Duration = Duration::from_secs(400 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_id_is_found_among_other_cookies() {
        let id = Id::default();
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, format!("theme=dark; id={id}; x=y").parse().unwrap());
        assert_eq!(cookie(&headers, COOKIE), Some(id));
    }

    #[test]
    fn a_malformed_id_is_no_id() {
        for value in ["id=", "id=short", "id=!!!!", "identity=AAAAAAAAAAAAAAAAAAAAAA"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, value.parse().unwrap());
            assert_eq!(cookie(&headers, COOKIE), None, "{value}");
        }
    }

    #[test]
    fn cookies_are_kept_from_scripts_and_other_sites() {
        let told = |member, secure| {
            let change = CookieChange::Set { id: Id::default(), member };
            change.header(secure).to_str().unwrap().to_owned()
        };
        let plain = told(true, false);
        assert!(plain.contains("; HttpOnly") && plain.contains("; SameSite=Lax") && plain.contains("Max-Age=34560000"));
        assert!(!plain.contains("Secure"));
        assert!(told(true, true).ends_with("; Secure"));
        assert!(!told(false, false).contains("Max-Age"), "a visitor's ends with the browser");
    }
}
