//! Sessions: what is remembered of a browser between its requests, kept where every instance finds it.
//!
//! What a request sees of its session is `tower-sessions`' [`Session`]. The store's trait and the middleware are our
//! own. The store has to say what became of a session that ended meanwhile, and keeps lists and counts beside it. The
//! middleware chooses `Secure` and the lifetime for each request, answers a failing store with our page, and never puts
//! back the id that a login has just replaced, though two requests of one browser may be under way at once.

#[cfg(any(test, feature = "contract"))]
pub mod contract;
#[cfg(feature = "network")]
pub mod redis_cluster;
pub mod sqlite;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{FromRequestParts, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tokio::time::timeout;
pub use tower_sessions_core::Session;
use tower_sessions_core::session::Expiry;
pub use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store;

use crate::App;
use crate::data::{UserKey, UserName};
use crate::error::{Error, StoreError};
use crate::layers::Client;

pub type Result<T> = std::result::Result<T, StoreError>;

/// Keeps sessions for every instance, and beside them short lists and counts.
///
/// - **Visibility:** whatever is finished is seen through every instance at once.
/// - **Ended** sessions stay so: [`save`](Self::save) never brings one back, and for [`TOMBSTONE_TTL`] the store still
///   knows that there was one.
/// - **Repeatable:** each operation may be sent again, by a retry here, and has the effect of one.
/// - **Parts** of the store may be away while others are well. What of a name stands in braces says which part it is
///   in; an id is in any.
/// - A dropped future leaves its operation either done or not done, never half done.
#[async_trait]
pub trait SessionStore: fmt::Debug + Send + Sync + 'static {
    /// Stores a new session. False if its id is taken, possibly by an earlier attempt of this call whose response was
    /// lost.
    async fn create(&self, record: &Record) -> Result<bool>;

    /// Replaces a session. False if it does not exist, or no longer.
    async fn save(&self, record: &Record) -> Result<bool>;

    async fn load(&self, id: &Id) -> Result<Loaded>;

    /// Ends a session. A missing one is no error.
    async fn delete(&self, id: &Id) -> Result<()>;

    /// Moves or adds `entry` to the end of the list `name`, and keeps the list for `lifetime` from now on. Returns the
    /// whole list.
    async fn enrol(&self, name: &str, entry: &str, lifetime: Duration) -> Result<Vec<String>>;

    /// The list `name`; empty if there is none.
    async fn list(&self, name: &str) -> Result<Vec<String>>;

    /// Removes entries from the list `name`.
    async fn strike(&self, name: &str, entries: &[String]) -> Result<()>;

    /// Counts `entry` under `name`, once. The count restarts when `window` has passed since the first entry.
    async fn count(&self, name: &str, entry: &str, window: Duration) -> Result<Count>;

    /// Removes an entry from a count; does nothing if it was not counted, or its window is over.
    async fn uncount(&self, name: &str, entry: &str) -> Result<()>;

    /// How much of the store is reachable; an error if nothing is.
    async fn reach(&self) -> Result<Reachability>;

    /// Whether the part of `id` is known to be unreachable.
    fn is_away(&self, id: &Id) -> bool {
        let _ = id;
        false
    }
}

/// The session under an id.
#[derive(Debug, Clone, PartialEq)]
pub enum Loaded {
    Session(Record),
    /// A session that was ended within the last [`TOMBSTONE_TTL`].
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Including this one.
    pub number: u32,
    /// Until the count restarts.
    pub left: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reachability {
    Whole,
    /// Some sessions are unreachable for all instances. Names the part.
    Partial(String),
}

/// The store for one request's [`Session`]: enforces the limit on a member's sessions, and records what happened to the
/// session that the browser sent.
#[derive(Debug)]
struct RequestStore {
    store: Arc<dyn SessionStore>,
    limits: Limits,
    /// The session was ended during the request, or shortly before.
    ended: AtomicBool,
    /// The browser's session is unreachable, and was replaced by a new one.
    is_replaced: AtomicBool,
    /// The request itself has saved the session, or has failed to.
    is_saved: AtomicBool,
}

impl RequestStore {
    fn note_ended(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl session_store::SessionStore for RequestStore {
    /// A member's session is short-lived until it is on the member's list. So an interrupted login, or one that loses
    /// its place to concurrent logins, leaves no session behind that is not counted. If the list is unreachable, the
    /// session is counted from its next renewal on.
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        self.ended.store(false, Ordering::Relaxed);
        let (member, expiry_date) = (member_of(record), record.expiry_date);
        if member.is_some() {
            record.expiry_date = expiry_date.min(OffsetDateTime::now_utc() + UNLISTED_TTL);
        }
        create_anywhere(&*self.store, record).await?;
        if let Some(member) = member {
            admit(&*self.store, &member, &record.id, self.limits).await;
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
        if self.is_replaced.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let loaded = self.store.load(id).await?;
        if loaded == Loaded::Ended {
            self.note_ended();
        }
        Ok(loaded.session())
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        if self.is_replaced.load(Ordering::Relaxed) {
            return Ok(());
        }
        Ok(self.store.delete(id).await?)
    }
}

impl From<StoreError> for session_store::Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) => Self::Backend(error.to_string()),
            StoreError::Corrupt(_) | StoreError::Unfit(_) => Self::Decode(error.to_string()),
        }
    }
}

/// Stores a new record under an unused id, in a part of the store that is reachable.
async fn create_anywhere(store: &dyn SessionStore, record: &mut Record) -> Result<()> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        // Any part will do if all are unreachable.
        for _ in 0..CANDIDATES {
            if !store.is_away(&record.id) {
                break;
            }
            record.id = Id::default();
        }
        let created = if attempts < MAX_ATTEMPTS && !store.is_away(&record.id) {
            timeout(CREATE_TIMEOUT, store.create(record)).await
        } else {
            Ok(store.create(record).await)
        };
        match created {
            Ok(Ok(true)) => return Ok(()),
            Ok(Err(error)) if attempts >= MAX_ATTEMPTS || !matches!(error, StoreError::Unavailable(_)) => {
                return Err(error);
            }
            // Nobody knows this id, so a session that may exist is left to expire.
            Ok(Ok(false) | Err(_)) | Err(_) => record.id = Id::default(),
        }
    }
}

/// Adds a session to its member's list, and ends surplus sessions: first those that have expired, then the longest
/// unused ones. Failures are only logged.
async fn admit(store: &dyn SessionStore, member: &UserKey, id: &Id, limits: Limits) {
    if let Err(error) = try_to_admit(store, member, id, limits).await {
        tracing::warn!(%error, "the sessions of a member could not be counted; there may be too many until this one is renewed");
    }
}

async fn try_to_admit(store: &dyn SessionStore, member: &UserKey, id: &Id, limits: Limits) -> Result<()> {
    let list = list_of(member);
    let listed = store.enrol(&list, &id.to_string(), limits.lifetimes.member * 2).await?;
    let most = limits.sessions_per_member;
    if listed.len() <= most {
        return Ok(());
    }
    let (mut alive, mut stale) = (Vec::new(), Vec::new());
    for entry in listed {
        let is_alive = match entry.parse() {
            // As far as is known.
            Ok(id) => store.load(&id).await.map_or(true, |loaded| loaded.session().is_some()),
            Err(_) => false,
        };
        if is_alive { &mut alive } else { &mut stale }.push(entry);
    }
    let surplus = alive.len().saturating_sub(most);
    // Concurrent calls end the same sessions, possibly that of one of them.
    for entry in alive.into_iter().take(surplus) {
        // In this order: if this is interrupted, a session that is off the list has already ended.
        if let Ok(id) = entry.parse() {
            store.delete(&id).await?;
        }
        stale.push(entry);
    }
    store.strike(&list, &stale).await
}

fn member_of(record: &Record) -> Option<UserKey> {
    let member: Member = serde_json::from_value(record.data.get(MEMBER)?.clone()).ok()?;
    Some(member.key())
}

fn list_of(member: &UserKey) -> String {
    format!("sessions:{}", member.as_str())
}

/// How long sessions last after their last use.
#[derive(Debug, Clone, Copy)]
pub struct Lifetimes {
    pub member: Duration,
    /// For visitors without a login: short, because anyone can create a session by omitting the cookie.
    pub visitor: Duration,
}

/// The number and lifetime of sessions.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub lifetimes: Lifetimes,
    /// Beyond it, the longest unused sessions end.
    pub sessions_per_member: usize,
}

/// Gives the request its session, and saves changes before the response is sent. A failure to save does not change the
/// response: requests save important changes themselves.
pub async fn keep(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let secure = request.extensions().get::<Client>().is_some_and(|client| client.tls);
    let sent = cookie(request.headers(), COOKIE);
    let store = Arc::new(RequestStore {
        store: Arc::clone(&app.sessions),
        limits: app.settings.sessions,
        ended: AtomicBool::new(false),
        is_replaced: AtomicBool::new(false),
        is_saved: AtomicBool::new(false),
    });
    let session = Session::new(sent, Arc::clone(&store), None);
    request.extensions_mut().insert(session.clone());
    request.extensions_mut().insert(LoggingIn { session: session.clone(), store: Arc::clone(&store) });

    let mut response = next.run(request).await;

    if response.status().is_server_error() {
        return response;
    }
    match finish(&app, &store, &session, sent).await {
        Ok(None) => {}
        Ok(Some(change)) => {
            response.headers_mut().append(header::SET_COOKIE, change.header(secure));
        }
        Err(error) => tracing::warn!(%error, "a session could not be saved, the answer is given without it"),
    }
    response
}

async fn finish(app: &App, store: &RequestStore, session: &Session, sent: Option<Id>) -> Result<Option<CookieChange>> {
    let is_saved = store.is_saved.load(Ordering::Relaxed);
    if !is_saved && !session.is_modified() && !used_after_long(session, store.limits.lifetimes.member).await {
        return Ok(None);
    }
    if session.is_empty().await {
        // Unless it had ended before: then the browser may have another cookie by now.
        return Ok(sent.filter(|_| !store.is_ended()).map(|_| CookieChange::Remove));
    }
    let member = signed_in(session).await?;
    if member.is_none() && store.is_ended() {
        // Another request of this browser has logged in or out. A new session for this visit would replace the cookie
        // that the other request has set.
        return Ok(None);
    }
    if !is_saved {
        save(store, session).await?;
    }
    let id = session.id().filter(|id| sent != Some(*id));
    if id.is_some() {
        app.metrics.sessions_created.inc();
    }
    // The cookie is sent only once: a response that was overtaken by that of a login must not restore the former id. It
    // is not sent at all if the session has ended.
    Ok(id
        .filter(|_| member.is_none() || !store.is_ended())
        .map(|id| CookieChange::Set { id, member: member.is_some() }))
}

/// Saves the session, with its full lifetime from now on.
async fn save(store: &RequestStore, session: &Session) -> Result<()> {
    let (member, limits) = (signed_in(session).await?, store.limits);
    let lifetime = if member.is_some() { limits.lifetimes.member } else { limits.lifetimes.visitor };
    let expiry = time::Duration::try_from(lifetime).unwrap_or(time::Duration::weeks(2));
    session.set_expiry(Some(Expiry::OnInactivity(expiry)));
    let renewed = renew_if_due(session, expiry).await?;
    if let (true, Some(member), Some(id)) = (renewed, &member, session.id()) {
        admit(&*store.store, &member.key(), &id, limits).await;
    }
    Ok(session.save().await?)
}

/// Whether the session of a member who only reads should be extended. False if unknown.
async fn used_after_long(session: &Session, lifetime: Duration) -> bool {
    if session.id().is_none() || !matches!(signed_in(session).await, Ok(Some(_))) {
        return false;
    }
    let renewed: Option<i64> = session.get(RENEWED).await.ok().flatten();
    let age = renewed.map(|at| OffsetDateTime::now_utc().unix_timestamp() - at);
    age.is_some_and(|age| u64::try_from(age).is_ok_and(|age| age > lifetime.as_secs() / 10))
}

/// Records the time of the last renewal; true once a tenth of the lifetime has passed since.
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
            // The session expires in the store; its cookie may last as long as browsers keep one.
            Self::Set { id, member: true } => set_cookie(COOKIE, &id.to_string(), "/", Some(MAX_COOKIE_AGE), secure),
            Self::Set { id, member: false } => set_cookie(COOKIE, &id.to_string(), "/", None, secure),
            Self::Remove => set_cookie(COOKIE, "", "/", Some(Duration::ZERO), secure),
        }
    }
}

/// A cookie for this site only, inaccessible to scripts; without `age` it lasts until the browser closes.
pub fn set_cookie(name: &str, value: &str, path: &str, age: Option<Duration>, secure: bool) -> HeaderValue {
    let age = age.map_or_else(String::new, |age| format!("; Max-Age={}", age.as_secs()));
    let secure = if secure { "; Secure" } else { "" };
    let cookie = format!("{name}={value}; Path={path}{age}; HttpOnly; SameSite=Lax{secure}");
    HeaderValue::try_from(cookie).expect("ids and rows are plain ASCII and the rest is ours")
}

/// The id in the cookie `name`, if it is valid.
pub fn cookie(headers: &HeaderMap, name: &str) -> Option<Id> {
    cookies(headers, name).find_map(|value| value.parse().ok())
}

/// The values of cookies with this name. Other cookies in the same line may contain arbitrary bytes.
pub fn cookies<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&byte| byte == b';'))
        .filter_map(move |pair| pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"="))
        .filter_map(|value| std::str::from_utf8(value).ok())
}

/// The logged-in member, as stored in the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub name: UserName,
    /// In sessions from before this field existed, the name's former key is used.
    #[serde(default)]
    key: Option<UserKey>,
}

impl Member {
    pub fn new(name: UserName, key: UserKey) -> Self {
        Self { name, key: Some(key) }
    }

    pub fn key(&self) -> UserKey {
        self.key.clone().unwrap_or_else(|| self.name.former_key())
    }
}

/// The session of a browser that logs in.
#[derive(Debug, Clone)]
pub struct LoggingIn {
    session: Session,
    store: Arc<RequestStore>,
}

impl LoggingIn {
    /// Makes this the session of `member`, under a new id, so that an id known before the login becomes worthless, and
    /// saves it. Data from before is kept if it was not another member's and is reachable.
    pub async fn sign_in(&self, member: &Member, draft: &Draft) -> Result<()> {
        let Self { session, store } = self;
        if session.cycle_id().await.is_err() {
            store.is_replaced.store(true, Ordering::Relaxed);
            session.cycle_id().await?;
        }
        if signed_in(session).await?.is_some_and(|former| former.key() != member.key()) {
            session.clear().await;
        }
        session.remove_value(RENEWED).await?;
        session.insert(MEMBER, member).await?;
        if !draft.is_empty() {
            draft.keep(session).await?;
        }
        store.is_saved.store(true, Ordering::Relaxed);
        save(store, session).await
    }
}

impl<S: Send + Sync> FromRequestParts<S> for LoggingIn {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Error> {
        parts.extensions.get().cloned().ok_or_else(|| Error::internal("no session layer"))
    }
}

/// Ends the session.
pub async fn sign_out(store: &dyn SessionStore, session: &Session) -> Result<()> {
    let (member, id) = (signed_in(session).await?, session.id());
    session.flush().await?;
    if let (Some(member), Some(id)) = (member, id)
        // Frees its place on the list. If that fails, the next login that needs the place finds that the session has
        // ended.
        && let Err(error) = store.strike(&list_of(&member.key()), &[id.to_string()]).await
    {
        tracing::debug!(%error, "a session that has ended stays listed");
    }
    Ok(())
}

pub async fn signed_in(session: &Session) -> Result<Option<Member>> {
    Ok(session.get(MEMBER).await?)
}

/// How often this session has seen the home page, and which instances responded recently.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visits {
    pub count: u64,
    /// Instances by name, latest first.
    pub answered: VecDeque<String>,
}

impl Visits {
    pub const REMEMBERED: usize = 24;

    /// Counts a visit, answered by `instance`.
    pub async fn count(session: &Session, instance: &str) -> Result<Self> {
        let mut visits: Self = session.get(VISITS).await?.unwrap_or_default();
        visits.count += 1;
        visits.answered.push_front(instance.to_owned());
        visits.answered.truncate(Self::REMEMBERED);
        session.insert(VISITS, &visits).await?;
        Ok(visits)
    }
}

/// A post whose author turned out to be logged out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draft {
    pub text: String,
    pub alt: String,
}

#[derive(Serialize, Deserialize)]
struct KeptDraft {
    #[serde(flatten)]
    draft: Draft,
    /// An entry with this id exists once the draft was posted. A concurrent request of the same browser may save the
    /// session as it was before, including the draft.
    posted: String,
}

impl Draft {
    /// Limit in bytes; a post of the maximum length can exceed it.
    pub const MAX_BYTES: usize = 8 * 1024;

    /// The length as stored, in bytes.
    pub fn length(&self) -> usize {
        let stored =
            |text: &String| serde_json::to_string(text).map_or(text.len(), |stored| stored.len() - "\"\"".len());
        stored(&self.text) + stored(&self.alt)
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.alt.is_empty()
    }

    async fn keep(&self, session: &Session) -> Result<()> {
        let kept = KeptDraft { draft: self.clone(), posted: Id::default().to_string() };
        Ok(session.insert(DRAFT, kept).await?)
    }

    pub async fn kept(store: &dyn SessionStore, session: &Session) -> Result<Option<Self>> {
        let Some(kept) = session.get::<KeptDraft>(DRAFT).await? else { return Ok(None) };
        let posted = match kept.posted.parse() {
            Ok(posted) => store.load(&posted).await.is_ok_and(|found| found != Loaded::Nothing),
            Err(_) => false,
        };
        if posted {
            session.remove_value(DRAFT).await?;
        }
        Ok((!posted).then_some(kept.draft))
    }

    /// Removes the draft after it was posted. A failure is not an error of the post.
    pub async fn discard(store: &dyn SessionStore, session: &Session) {
        if let Err(error) = Self::try_to_discard(store, session).await {
            tracing::warn!(%error, "a draft that was posted may come back");
        }
    }

    async fn try_to_discard(store: &dyn SessionStore, session: &Session) -> Result<()> {
        // Removing a missing draft would count as a change and cause a write.
        let Some(kept) = session.get::<KeptDraft>(DRAFT).await? else { return Ok(()) };
        session.remove_value(DRAFT).await?;
        if let Ok(id) = kept.posted.parse() {
            let expiry_date = OffsetDateTime::now_utc() + TOMBSTONE_TTL;
            store.create(&Record { id, data: HashMap::new(), expiry_date }).await?;
        }
        Ok(())
    }
}

/// The visitor of a page that anyone may see. Never refuses: if the store is unreachable, the visitor counts as logged
/// out, and the page says so.
#[derive(Debug, Clone, Default)]
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

/// A logged-in visitor, for pages that require one. Others are sent to log in and return to the page afterwards.
impl<S: Send + Sync> FromRequestParts<S> for Member {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Error> {
        let session = parts.extensions.get::<Session>().ok_or_else(|| Error::internal("no session layer"))?;
        let next = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        signed_in(session).await?.ok_or_else(|| Error::LoginNeeded { next: next.to_owned() })
    }
}

/// A neutral name that reveals nothing about the software.
const COOKIE: &str = "id";
const MEMBER: &str = "member";
const VISITS: &str = "visits";
const DRAFT: &str = "draft";
const RENEWED: &str = "renewed";
/// How long the end of a session is remembered: longer than any request of the same browser takes.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(600);
/// How long a member's session lasts until it is on the member's list: longer than adding it takes.
const UNLISTED_TTL: time::Duration = time::Duration::minutes(2);
/// How many ids are tried for a new session while parts of the store are away.
const MAX_ATTEMPTS: usize = 3;
/// How many ids are considered to find one whose part is not known to be away.
const CANDIDATES: usize = 32;
/// How long a new session waits for the store's part that has its id before another id is tried.
const CREATE_TIMEOUT: Duration = Duration::from_secs(1);
/// Browsers shorten longer ages: 400 days (RFC 6265bis §5.5).
const MAX_COOKIE_AGE: Duration = Duration::from_secs(400 * 24 * 3600);

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
    fn a_malformed_session_id_is_ignored() {
        for value in ["id=", "id=short", "id=!!!!", "identity=AAAAAAAAAAAAAAAAAAAAAA"] {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, value.parse().unwrap());
            assert_eq!(cookie(&headers, COOKIE), None, "{value}");
        }
    }

    #[test]
    fn cookies_are_http_only_and_same_site() {
        let cookie = |member, secure| {
            let change = CookieChange::Set { id: Id::default(), member };
            change.header(secure).to_str().unwrap().to_owned()
        };
        let plain = cookie(true, false);
        assert!(plain.contains("; HttpOnly") && plain.contains("; SameSite=Lax") && plain.contains("Max-Age=34560000"));
        assert!(!plain.contains("Secure"));
        assert!(cookie(true, true).ends_with("; Secure"));
        assert!(!cookie(false, false).contains("Max-Age"), "a visitor's ends with the browser");
    }
}
