//! How often a login may fail, by account, by address, and by both together, and how many accounts an address may make:
//! over all instances.
//!
//! Each attempt is counted before its password is checked, and taken back if that was right, or if there was no
//! verdict: because it was refused, or because of a failure of ours. So attempts at the same time cannot exceed a limit
//! together, and one that its client gives up counts as failed.
//!
//! Nobody can lock a member out. A browser that has logged in to the account before is known by a cookie of its own and
//! counted alone, as in OWASP's "device cookies". For all others the limit of the account, once reached by whomever,
//! still leaves one attempt to each address.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue};

use crate::data::UserKey;
use crate::error::StoreError;
use crate::sessions::{self, Id, SessionStore};

/// Limits on failed attempts within a window.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Begins with the first failure.
    pub window: Duration,
    /// On one account, from one address or known browser.
    pub together: u32,
    /// On one account, from all addresses.
    pub per_account: u32,
    /// From one address, on all accounts.
    pub per_address: u32,
    /// Limit on signups from one address. Attempts with a taken name count as well, since their response reveals who is
    /// a member.
    pub signups: u32,
}

/// An attempt that is in progress.
#[derive(Debug)]
pub struct Attempt {
    /// The id under which it is counted.
    id: String,
    /// The counters that include it.
    counted: Vec<String>,
    /// The device ids that the browser sent.
    sent: Vec<Id>,
    /// The device id by which this account knows the browser.
    device: Option<Id>,
}

/// Too many attempts have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    pub try_again_in: Duration,
}

impl Refused {
    /// In whole seconds, for `Retry-After`, and in whole minutes, for people.
    pub fn wait(self) -> (String, u64) {
        let seconds = self.try_again_in.as_secs() + 1;
        (seconds.to_string(), seconds.div_ceil(60))
    }
}

impl Attempt {
    fn new(headers: &HeaderMap) -> Self {
        let sent = sessions::cookies(headers, DEVICE).flat_map(|ids| ids.split(SEPARATOR));
        let sent = sent.filter_map(|id| id.parse().ok()).take(ACCOUNTS).collect();
        Self { id: Id::default().to_string(), counted: Vec::new(), sent, device: None }
    }

    /// Counts an attempt to log in to `account`, or to none if the name is invalid. The steps do not depend on whether
    /// the account exists.
    pub async fn begin(
        store: &dyn SessionStore,
        limits: Limits,
        account: Option<&UserKey>,
        address: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Result<Self, Refused>, StoreError> {
        let mut attempt = Self::new(headers);
        let verdict = attempt.count_login(store, limits, account, address).await;
        attempt.unless_refused(store, verdict).await
    }

    /// Counts an attempt to sign up.
    pub async fn sign_up(
        store: &dyn SessionStore,
        limits: Limits,
        address: IpAddr,
        headers: &HeaderMap,
    ) -> Result<Result<Self, Refused>, StoreError> {
        let mut attempt = Self::new(headers);
        let count = attempt.count(store, format!("signup:{}", network(address)), limits.window).await;
        let verdict = count.map(|count| count.within(limits.signups));
        attempt.unless_refused(store, verdict).await
    }

    async fn count_login(
        &mut self,
        store: &dyn SessionStore,
        limits: Limits,
        account: Option<&UserKey>,
        address: IpAddr,
    ) -> Result<Result<(), Refused>, StoreError> {
        let network = network(address);
        let account = account.map(UserKey::as_str);
        if let Some(account) = account
            && let Some(device) = self.known(store, account).await?
        {
            self.device = Some(device);
            let count = self.count(store, format!("device:{{{account}}}:{device}"), limits.window).await?;
            return Ok(count.within(limits.together));
        }
        // The address is counted first: a refused address must not create further counters. The account is counted
        // last: attempts that are refused for other reasons must not lock out others.
        let count = self.count(store, format!("address:{{{network}}}"), limits.window).await?;
        if let Err(refused) = count.within(limits.per_address) {
            return Ok(Err(refused));
        }
        let Some(account) = account else { return Ok(Ok(())) };
        let together = self.count(store, format!("login:{{{network}}}:{account}"), limits.window).await?;
        if let Err(refused) = together.within(limits.together) {
            return Ok(Err(refused));
        }
        let count = self.count(store, format!("account:{{{account}}}"), limits.window).await?;
        // The first attempt from an address is always checked.
        let most = if together.number > 1 { limits.per_account } else { u32::MAX };
        Ok(count.within(most))
    }

    /// The device id by which `account` knows the browser, if it does.
    async fn known(&self, store: &dyn SessionStore, account: &str) -> Result<Option<Id>, StoreError> {
        if self.sent.is_empty() {
            return Ok(None);
        }
        let known = store.list(&devices(account)).await?;
        Ok(self.sent.iter().copied().find(|device| known.contains(&device.to_string())))
    }

    async fn count(
        &mut self,
        store: &dyn SessionStore,
        name: String,
        window: Duration,
    ) -> Result<sessions::Count, StoreError> {
        // It may have been counted even if the response was lost.
        self.counted.push(name.clone());
        store.count(&name, &self.id, window).await
    }

    async fn unless_refused(
        self,
        store: &dyn SessionStore,
        verdict: Result<Result<(), Refused>, StoreError>,
    ) -> Result<Result<Self, Refused>, StoreError> {
        if !matches!(verdict, Ok(Ok(()))) {
            self.withdraw(store).await;
        }
        Ok(verdict?.map(|()| self))
    }

    /// Removes the attempt from the counters, because the password was not checked. If that fails, it stays counted.
    pub async fn withdraw(&self, store: &dyn SessionStore) {
        let uncounted = self.counted.iter().map(|name| store.uncount(name, &self.id));
        for outcome in join_all(uncounted).await {
            if let Err(error) = outcome {
                tracing::warn!(%error, "an attempt that has not failed stays counted");
            }
        }
    }

    /// The password was right: removes the attempt from the counters, and remembers this browser. Returns its cookie.
    pub async fn succeeded(&self, store: &dyn SessionStore, account: &UserKey, secure: bool) -> Option<HeaderValue> {
        tokio::join!(self.withdraw(store), self.remember(store, account, secure)).1
    }

    /// Makes the browser known to `account` under a new id, in place of the old one. Returns its cookie. A failure here
    /// does not fail the login.
    pub async fn remember(&self, store: &dyn SessionStore, account: &UserKey, secure: bool) -> Option<HeaderValue> {
        // A new id each time, so that nobody can set it for somebody else.
        let device = Id::default();
        if let Err(error) = enrol(store, account, device, self.device).await {
            tracing::warn!(%error, "a browser that has logged in is not known by that");
            return None;
        }
        let others = self.sent.iter().filter(|other| self.device != Some(**other));
        let known: Vec<_> = [&device].into_iter().chain(others).take(ACCOUNTS).map(Id::to_string).collect();
        Some(sessions::set_cookie(DEVICE, &known.join(SEPARATOR), "/accounts/", Some(DEVICE_TTL), secure))
    }
}

async fn enrol(store: &dyn SessionStore, account: &UserKey, device: Id, former: Option<Id>) -> Result<(), StoreError> {
    let list = devices(account.as_str());
    let known = store.enrol(&list, &device.to_string(), DEVICE_TTL).await?;
    let surplus = known.len().saturating_sub(MAX_DEVICES);
    let mut stale = known[..surplus].to_vec();
    stale.extend(former.map(|former| former.to_string()));
    store.strike(&list, &stale).await
}

impl sessions::Count {
    fn within(self, most: u32) -> Result<(), Refused> {
        if self.number <= most { Ok(()) } else { Err(Refused { try_again_in: self.left }) }
    }
}

fn devices(account: &str) -> String {
    format!("devices:{{{account}}}")
}

/// The network from which one client can choose addresses: for IPv6 the whole subnet.
fn network(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::")
        }
    }
}

const DEVICE: &str = "device";
/// Limit on the accounts that know one browser.
const ACCOUNTS: usize = 8;
/// Separates ids in the cookie; no id contains it.
const SEPARATOR: &str = ".";
/// Limit on the known browsers of one account; a new one replaces the one that logged in longest ago.
const MAX_DEVICES: usize = 20;
const DEVICE_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::header;

    use super::*;
    use crate::data::UserName;
    use crate::sessions::sqlite::SqliteSessions;

    const LIMITS: Limits =
        Limits { window: Duration::from_secs(3600), together: 3, per_account: 5, per_address: 8, signups: 3 };

    struct Site {
        _folder: tempfile::TempDir,
        store: Arc<SqliteSessions>,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let store = Arc::new(SqliteSessions::open(&folder.path().join("sessions.sqlite3")).unwrap());
            Self { _folder: folder, store }
        }

        async fn begin(&self, name: &str, address: &str, cookie: Option<&HeaderValue>) -> Result<Attempt, Refused> {
            let mut headers = HeaderMap::new();
            if let Some(cookie) = cookie {
                headers.insert(header::COOKIE, cookie.to_str().unwrap().split(';').next().unwrap().parse().unwrap());
            }
            let name: Option<UserName> = name.parse().ok();
            let key = name.map(|name| name.key());
            Attempt::begin(&*self.store, LIMITS, key.as_ref(), address.parse().unwrap(), &headers).await.unwrap()
        }

        async fn succeed(&self, name: &str, address: &str) -> HeaderValue {
            let attempt = self.begin(name, address, None).await.unwrap();
            let name: UserName = name.parse().unwrap();
            attempt.succeeded(&*self.store, &name.key(), false).await.unwrap()
        }
    }

    #[tokio::test]
    async fn failures_of_an_address_on_an_account_are_limited() {
        let site = Site::new();
        for _ in 0..3 {
            site.begin("ann", "192.0.2.1", None).await.unwrap();
        }
        let refused = site.begin("Ann", "192.0.2.1", None).await.unwrap_err();
        assert!(refused.try_again_in <= LIMITS.window && refused.try_again_in > LIMITS.window / 2);
        site.begin("ben", "192.0.2.1", None).await.unwrap();
        site.begin("ann", "192.0.2.2", None).await.unwrap();
    }

    #[tokio::test]
    async fn failures_of_an_address_over_all_accounts_are_limited() {
        let site = Site::new();
        for number in 0..7 {
            site.begin(&format!("user{number}"), "2001:db8::1", None).await.unwrap();
        }
        // Invalid names count as well, and the whole subnet counts as one client.
        site.begin("!", "2001:db8::2", None).await.unwrap();
        site.begin("ann", "2001:db8::3", None).await.unwrap_err();
        site.begin("!", "2001:db8::4", None).await.unwrap_err();
        site.begin("ann", "2001:db8:0:1::1", None).await.unwrap();
    }

    #[tokio::test]
    async fn an_account_under_attack_leaves_each_address_one_attempt() {
        let site = Site::new();
        for number in 0..5 {
            site.begin("ann", &format!("192.0.2.{number}"), None).await.unwrap();
        }
        for number in 0..5 {
            site.begin("ann", &format!("192.0.2.{number}"), None).await.unwrap_err();
        }
        // The member herself, from a new address.
        let attempt = site.begin("ann", "198.51.100.1", None).await.unwrap();
        attempt.succeeded(&*site.store, &"ann".parse::<UserName>().unwrap().key(), false).await.unwrap();
        site.begin("ann", "198.51.100.1", None).await.unwrap();
        site.begin("ann", "198.51.100.1", None).await.unwrap_err();
    }

    #[tokio::test]
    async fn a_known_browser_has_its_own_count() {
        let site = Site::new();
        let cookie = site.succeed("ann", "192.0.2.1").await;
        while site.begin("ann", "192.0.2.1", None).await.is_ok() {}
        for _ in 0..3 {
            // From the address that has failed too often.
            site.begin("ann", "192.0.2.1", Some(&cookie)).await.unwrap();
        }
        site.begin("ann", "192.0.2.1", Some(&cookie)).await.unwrap_err();
        // Known to the first account only.
        while site.begin("ben", "192.0.2.1", Some(&cookie)).await.is_ok() {}
    }

    #[tokio::test]
    async fn successful_attempts_are_not_counted() {
        let site = Site::new();
        for _ in 0..20 {
            site.succeed("ann", "192.0.2.1").await;
        }
        for _ in 0..3 {
            site.begin("ann", "192.0.2.1", None).await.unwrap();
        }
        site.begin("ann", "192.0.2.1", None).await.unwrap_err();
    }

    #[tokio::test]
    async fn signups_from_an_address_are_limited() {
        let site = Site::new();
        let sign_up = async |address: &str| {
            let address = address.parse().unwrap();
            Attempt::sign_up(&*site.store, LIMITS, address, &HeaderMap::new()).await.unwrap()
        };
        for number in 1..=3 {
            sign_up(&format!("2001:db8::{number}")).await.unwrap();
        }
        let refused = sign_up("2001:db8::4").await.unwrap_err();
        assert!(refused.try_again_in <= LIMITS.window && refused.try_again_in > LIMITS.window / 2);
        sign_up("192.0.2.1").await.unwrap();
        // Logins have separate counters.
        site.begin("ann", "2001:db8::1", None).await.unwrap();
    }

    #[tokio::test]
    async fn refused_and_withdrawn_attempts_are_not_counted() {
        let site = Site::new();
        for _ in 0..3 {
            site.begin("ann", "192.0.2.1", None).await.unwrap();
        }
        for _ in 0..20 {
            site.begin("ann", "192.0.2.1", None).await.unwrap_err();
            site.begin("ben", "192.0.2.1", None).await.unwrap().withdraw(&*site.store).await;
        }
    }

    #[tokio::test]
    async fn a_browser_is_known_to_a_bounded_number_of_accounts() {
        let site = Site::new();
        let mut cookie = None;
        for number in 0..ACCOUNTS + 2 {
            let name = format!("user{number}");
            let attempt = site.begin(&name, "192.0.2.1", cookie.as_ref()).await.unwrap();
            let key = name.parse::<UserName>().unwrap().key();
            cookie = attempt.succeeded(&*site.store, &key, false).await;
        }
        let ids = cookie.unwrap().to_str().unwrap().split([';', '=']).nth(1).unwrap().split(SEPARATOR).count();
        assert_eq!(ids, ACCOUNTS);
    }

    #[tokio::test]
    async fn concurrent_attempts_respect_the_limit() {
        let site = Site::new();
        let attempts = futures_util::future::join_all((0..40).map(|_| site.begin("ann", "192.0.2.1", None))).await;
        assert_eq!(attempts.iter().filter(|attempt| attempt.is_ok()).count(), 3);
    }

    #[tokio::test]
    async fn an_account_knows_a_bounded_number_of_browsers_by_its_own_ids() {
        let site = Site::new();
        let key = "ann".parse::<UserName>().unwrap().key();
        let first = site.succeed("ann", "192.0.2.1").await;
        let again = site.begin("ann", "192.0.2.1", Some(&first)).await.unwrap();
        let renewed = again.succeeded(&*site.store, &key, true).await.unwrap();
        assert_ne!(first, renewed);
        assert_eq!(site.store.list(&devices("ann")).await.unwrap().len(), 1);
        for _ in 0..30 {
            site.succeed("ann", "192.0.2.1").await;
        }
        assert_eq!(site.store.list(&devices("ann")).await.unwrap().len(), MAX_DEVICES);
        let cookie = renewed.to_str().unwrap();
        assert!(
            cookie.contains("Path=/accounts/; Max-Age=7776000; HttpOnly") && cookie.ends_with("; Secure"),
            "{cookie}"
        );
    }
}
