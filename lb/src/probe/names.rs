//! Keeps the names of backends resolved: one task for each name asks for its addresses again whenever the last answer is
//! out of date, so that no name waits for another. Where several pools write the same name, it is asked for once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::resolver::{self, Answer, MAX_ADDRESSES, Question, Resolver, Unanswered, reachable};
use crate::backend::{Backend, Resolution, Share};
use crate::config::ResolverConfig;
use crate::config::backend::{AdminState, BackendAddress};
use crate::control::Control;
use crate::pool::Pool;

/// How soon a name is asked for again after a question that failed, and after an answer that there is none, at the latest.
const MAX_PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long traffic and the start wait for the first answer, before a name counts as one that leads nowhere.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// No question takes longer, whatever servers, attempts and search domains there are.
const MAX_QUESTION_TIME: Duration = Duration::from_secs(60);

/// A line of the log names no more addresses.
const MAX_LISTED: usize = 8;

/// Follows the snapshots' names until dropped. `moved` is called when one leads somewhere else.
pub async fn keep_resolved(control: &Arc<Control>, moved: &Arc<Notify>) {
    let mut versions = control.versions();
    let resolver = Arc::new(Resolver::default());
    let mut tasks = HashMap::<BackendAddress, Task>::new();
    loop {
        let config = control.snapshot().config.server.resolver.clone();
        let wanted = names(control);
        tasks.retain(|address, _| wanted.contains_key(address));
        for (address, is_asked_for) in wanted {
            let task = tasks.remove(&address);
            let asking = Asking { control, resolver: &resolver, moved, config: &config, address: &address };
            let task = match task {
                Some(task) if is_asked_for && task.config == config && task.is_running() => {
                    // A pool that is new takes up what the others know.
                    asking.take_up(&lock(&task.known));
                    task
                }
                task => {
                    // What is known stays, however long nobody asks. By other rules it is asked for at once.
                    let known = task.map(|task| Arc::clone(&task.known)).unwrap_or_default();
                    if is_asked_for {
                        asking.start(known)
                    } else {
                        Task { known, config: config.clone(), handle: None }
                    }
                }
            };
            tasks.insert(address, task);
        }
        if versions.changed().await.is_err() {
            return;
        }
    }
}

/// Every name that some backend is written by, and whether it is asked for: not if all those backends are down.
fn names(control: &Control) -> BTreeMap<BackendAddress, bool> {
    let mut names = BTreeMap::new();
    for pool in &control.snapshot().pools {
        for (member, state) in pool.plan().backends() {
            let address = &member.backend.address;
            if address.socket_address().is_none() {
                *names.entry(address.clone()).or_default() |= state != AdminState::Down;
            }
        }
    }
    names
}

/// What is known of one name, and the asking for it, which ends when dropped.
struct Task {
    known: Arc<Mutex<Known>>,
    config: ResolverConfig,
    /// `None`: nobody asks.
    handle: Option<AbortHandle>,
}

impl Task {
    fn is_running(&self) -> bool {
        self.handle.as_ref().is_some_and(|handle| !handle.is_finished())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.iter().for_each(AbortHandle::abort);
    }
}

/// What is known of a name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Known {
    v4: BTreeSet<SocketAddrV4>,
    v6: BTreeSet<SocketAddrV6>,
    /// Of a service: how these addresses share what is sent there.
    shares: BTreeMap<SocketAddr, Share>,
    /// Since when DNS has said that there is no address.
    absent_since: Option<Instant>,
    /// Why the last question had no answer. It is told once for each row of failures.
    error: Option<String>,
    was_asked: bool,
    /// How many addresses of the last answer are not used, since there are too many.
    left_out: usize,
}

/// What follows from the end of a question.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// It goes well, as before.
    Nothing,
    Resolved,
    /// It goes well, but so many addresses are left out. Told once, until there are none.
    TooMany(usize),
    /// The last addresses are used on, if there are any.
    Failing(String),
    /// They are not used any more.
    Dropped(String),
}

impl Known {
    fn addresses(&self) -> Vec<SocketAddr> {
        let (v4, v6) = (self.v4.iter().copied().map(SocketAddr::V4), self.v6.iter().copied().map(SocketAddr::V6));
        reachable(v4.chain(v6).collect())
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    /// Takes in how a question ended: what is to be told of it, and when to ask again.
    fn learn(&mut self, ended: Result<Answer, Unanswered>, config: &ResolverConfig, now: Instant) -> (Told, Duration) {
        self.was_asked = true;
        let soon = MAX_PAUSE_AFTER_FAILURE.min(config.max_ttl);
        match ended {
            Ok(Answer { mut v4, mut v6, shares, lacks_later, left_out, ttl }) => {
                let first = shares.values().map(|share| share.priority).min();
                let later = self.shares.iter().filter(|(_, share)| lacks_later && Some(share.priority) > first);
                for address in later.map(|(address, _)| address) {
                    match address {
                        SocketAddr::V4(address) => v4.iter_mut().for_each(|v4| v4.extend([*address])),
                        SocketAddr::V6(address) => v6.iter_mut().for_each(|v6| v6.extend([*address])),
                    }
                }
                // A family that could not be asked for stays as it was.
                self.v4 = v4.unwrap_or_else(|| std::mem::take(&mut self.v4));
                self.v6 = v6.unwrap_or_else(|| std::mem::take(&mut self.v6));
                self.absent_since = None;
                let left_out = left_out + resolver::bound(&mut self.v4, &mut self.v6);
                self.shares.extend(shares);
                self.shares.retain(|address, _| match address {
                    SocketAddr::V4(address) => self.v4.contains(address),
                    SocketAddr::V6(address) => self.v6.contains(address),
                });
                let is_news = std::mem::replace(&mut self.left_out, left_out) == 0 && left_out > 0;
                let told = match self.error.take() {
                    _ if is_news => Told::TooMany(left_out),
                    Some(_) => Told::Resolved,
                    None => Told::Nothing,
                };
                (told, ttl)
            }
            Err(Unanswered::Failed { reason }) => {
                let is_news = self.error.is_none();
                self.error = Some(reason.clone());
                (if is_news { Told::Failing(reason) } else { Told::Nothing }, soon)
            }
            Err(Unanswered::Absent { reason, ttl }) => {
                let since = *self.absent_since.get_or_insert(now);
                let is_over = now.saturating_duration_since(since) >= config.hold;
                let is_news = self.error.is_none();
                self.error = Some(reason.clone());
                let told = if is_over && !self.is_empty() {
                    (self.v4, self.v6) = (BTreeSet::new(), BTreeSet::new());
                    Told::Dropped(reason)
                } else if is_news {
                    Told::Failing(reason)
                } else {
                    Told::Nothing
                };
                let pause = ttl.unwrap_or(soon).clamp(config.min_ttl.min(soon), soon);
                (told, pause)
            }
        }
    }
}

/// One name, and what it takes to ask for it.
struct Asking<'a> {
    control: &'a Arc<Control>,
    resolver: &'a Arc<Resolver>,
    moved: &'a Arc<Notify>,
    config: &'a ResolverConfig,
    address: &'a BackendAddress,
}

impl Asking<'_> {
    fn start(&self, known: Arc<Mutex<Known>>) -> Task {
        let (control, resolver, moved) = (Arc::clone(self.control), Arc::clone(self.resolver), Arc::clone(self.moved));
        let (config, address, knows) = (self.config.clone(), self.address.clone(), Arc::clone(&known));
        let asking = async move {
            let asking =
                Asking { control: &control, resolver: &resolver, moved: &moved, config: &config, address: &address };
            asking.run(&known).await;
        };
        Task { known: knows, config: self.config.clone(), handle: Some(tokio::spawn(asking).abort_handle()) }
    }

    /// Asks again and again.
    async fn run(&self, known: &Mutex<Known>) {
        self.take_up(&lock(known));
        loop {
            let ended = self.ask(known).await;
            let (told, pause) = lock(known).learn(ended, self.config, Instant::now());
            self.tell(&told, &lock(known));
            self.note(&lock(known));
            self.take_up(&lock(known));
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks once. Who waits for the first answer of all does not wait for long.
    async fn ask(&self, known: &Mutex<Known>) -> Result<Answer, Unanswered> {
        let question = self.resolver.ask(Question::of(self.address), self.config);
        let asking = tokio::time::timeout(MAX_QUESTION_TIME, question);
        let late = |_| Err(Unanswered::Failed { reason: "no DNS server answers in time".to_owned() });
        let mut asking = std::pin::pin!(asking);
        if !lock(known).was_asked {
            match tokio::time::timeout(FIRST_ANSWER_TIMEOUT, &mut asking).await {
                Ok(ended) => return ended.unwrap_or_else(late),
                Err(_) => self.each(|_, backend| backend.is_unresolved()),
            }
        }
        asking.await.unwrap_or_else(late)
    }

    fn tell(&self, told: &Told, known: &Known) {
        let backend = self.address;
        match told {
            Told::Nothing => {}
            Told::Resolved => tracing::info!(%backend, "the name of a backend is resolved again"),
            Told::TooMany(left_out) => {
                let used = MAX_ADDRESSES;
                tracing::warn!(%backend, used, left_out, "the name of a backend has too many addresses: some are left out");
            }
            Told::Failing(reason) if known.is_empty() => {
                tracing::warn!(%backend, reason, "the name of a backend is not resolved: nothing can be sent there");
            }
            Told::Failing(reason) => {
                tracing::warn!(%backend, reason, "the name of a backend is not resolved: its last addresses are used on");
            }
            Told::Dropped(reason) => {
                tracing::warn!(%backend, reason, "the name of a backend has no address any more: nothing is sent there");
            }
        }
    }

    /// Counts the question that has ended, and has the backends tell of it.
    fn note(&self, known: &Known) {
        let resolution = Resolution { at: Instant::now(), error: known.error.clone() };
        self.each(|_, backend| {
            backend.asked(resolution.clone());
            if let Some(resolutions) = &backend.metrics.resolutions {
                if known.error.is_none() { resolutions.succeeded.inc() } else { resolutions.failed.inc() }
            }
        });
    }

    /// Has the backends of this name lead where it leads, as far as anything is known.
    fn take_up(&self, known: &Known) {
        if !known.was_asked {
            return;
        }
        let addresses = known.addresses();
        self.each(|pool, backend| {
            let moved = backend.resolved(&addresses, Instant::now());
            backend.share_out(&known.shares);
            if !moved.left.is_empty() {
                let (joined, left) = (listed(&moved.joined), listed(&moved.left));
                tracing::info!(pool = %pool.name, backend = %backend.address, joined, left, "a name leads to other addresses");
            } else if !moved.joined.is_empty() {
                let joined = listed(&moved.joined);
                tracing::info!(pool = %pool.name, backend = %backend.address, joined, "a name leads to further addresses");
            }
            if addresses.is_empty() {
                backend.is_unresolved();
            }
        });
    }

    /// Does something with every backend that is written by this name. Pools whose backends change by it list their
    /// candidates anew.
    fn each(&self, does: impl Fn(&Pool, &Backend)) {
        let snapshot = Arc::clone(&self.control.snapshot());
        for pool in &snapshot.pools {
            let plan = pool.plan();
            let of_name = plan.backends().map(|(member, _)| &member.backend);
            for backend in of_name.filter(|backend| backend.address == *self.address) {
                let before = backend.changes();
                does(pool, backend);
                if backend.changes() != before {
                    pool.refresh(Instant::now());
                    self.moved.notify_one();
                }
            }
        }
    }
}

/// The first addresses, and how many more there are.
fn listed(addresses: &[SocketAddr]) -> String {
    let texts: Vec<_> = addresses.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    match addresses.len().saturating_sub(MAX_LISTED) {
        0 => texts.join(", "),
        more => format!("{} and {more} more", texts.join(", ")),
    }
}

/// A panic while it was held leaves what is known as it was.
fn lock(known: &Mutex<Known>) -> std::sync::MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    const CONFIG: ResolverConfig = ResolverConfig {
        servers: Vec::new(),
        timeout: None,
        attempts: None,
        min_ttl: Duration::from_secs(1),
        max_ttl: Duration::from_secs(300),
        hold: Duration::from_secs(30),
    };

    fn answer(v4: Option<&[[u8; 4]]>, v6: Option<&[u16]>) -> Result<Answer, Unanswered> {
        Ok(Answer {
            v4: v4.map(|all| all.iter().map(|&ip| SocketAddrV4::new(ip.into(), 80)).collect()),
            v6: v6.map(|all| {
                let address = |last| SocketAddrV6::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last), 80, 0, 0);
                all.iter().map(|&last| address(last)).collect()
            }),
            ttl: Duration::from_secs(7),
            ..Answer::default()
        })
    }

    fn failed() -> Result<Answer, Unanswered> {
        Err(Unanswered::Failed { reason: "SERVFAIL".to_owned() })
    }

    fn absent(ttl: Option<u64>) -> Result<Answer, Unanswered> {
        Err(Unanswered::Absent { reason: "no such name".to_owned(), ttl: ttl.map(Duration::from_secs) })
    }

    #[test]
    fn the_last_addresses_stay_while_dns_fails_and_the_failure_is_told_once() {
        let (mut known, now) = (Known::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert_eq!(known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[])), &CONFIG, now), (Told::Nothing, seconds(7)));
        let before = known.addresses();
        assert_eq!(before, ["10.0.0.1:80".parse().expect("an address")]);
        let told = Told::Failing("SERVFAIL".to_owned());
        assert_eq!(known.learn(failed(), &CONFIG, now), (told, seconds(5)));
        assert_eq!(known.learn(failed(), &CONFIG, now + seconds(9999)), (Told::Nothing, seconds(5)));
        assert_eq!(known.addresses(), before);
        assert_eq!(known.learn(answer(Some(&[[10, 0, 0, 2]]), Some(&[])), &CONFIG, now).0, Told::Resolved);
        assert_eq!(known.addresses(), ["10.0.0.2:80".parse().expect("an address")]);
    }

    #[test]
    fn too_many_addresses_are_left_out_and_told_of_once() {
        let (mut known, now) = (Known::default(), Instant::now());
        let many = |count: u8| (0..count).map(|last| [10, 0, 0, last]).collect::<Vec<_>>();
        let mut learn = |v4: u8| {
            let told = known.learn(answer(Some(&many(v4)), None), &CONFIG, now).0;
            (told, known.v4.len() + known.v6.len())
        };
        assert_eq!(learn(128), (Told::Nothing, 128));
        assert_eq!(learn(200), (Told::TooMany(72), 128));
        assert_eq!(learn(201), (Told::Nothing, 128));
        assert_eq!(learn(3), (Told::Nothing, 3));
        assert_eq!(learn(130), (Told::TooMany(2), 128));
    }

    #[test]
    fn few_addresses_are_named_in_a_line() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let all: Vec<_> = (1..=128).map(address).collect();
        assert_eq!(listed(&all[..2]), "10.0.0.1:80, 10.0.0.2:80");
        assert!(listed(&all[..8]).ends_with("10.0.0.8:80"));
        assert!(listed(&all).ends_with(", 10.0.0.8:80 and 120 more"), "{}", listed(&all));
    }

    #[test]
    fn a_family_that_cannot_be_asked_for_stays_as_it_was() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[1])), &CONFIG, now);
        known.learn(answer(Some(&[[10, 0, 0, 2]]), None), &CONFIG, now);
        assert_eq!((known.v4.len(), known.v6.len()), (1, 1));
        assert!(known.v4.contains(&"10.0.0.2:80".parse().expect("an address")));
        known.learn(answer(None, Some(&[])), &CONFIG, now);
        assert_eq!((known.v4.len(), known.v6.len()), (1, 0));
    }

    #[test]
    fn hosts_of_a_later_priority_that_cannot_be_asked_for_stay_as_they_were() {
        let (mut known, now) = (Known::default(), Instant::now());
        let answer = |records: &[(u8, u16, u32)], lacks_later| {
            let ip = |last| std::net::Ipv4Addr::new(10, 0, 0, last);
            Ok(Answer {
                v4: Some(records.iter().map(|record| SocketAddrV4::new(ip(record.0), 80)).collect()),
                v6: Some(BTreeSet::new()),
                shares: records
                    .iter()
                    .map(|&(last, priority, weight)| ((ip(last), 80).into(), Share { priority, weight }))
                    .collect(),
                lacks_later,
                ..Answer::default()
            })
        };
        let shares = |known: &Known| {
            assert_eq!(known.shares.len(), known.v4.len());
            let numbers = |(address, share): (&SocketAddr, &Share)| match address {
                SocketAddr::V4(address) => (address.ip().octets()[3], share.priority, share.weight),
                SocketAddr::V6(_) => (0, share.priority, share.weight),
            };
            known.shares.iter().map(numbers).collect::<Vec<_>>()
        };
        known.learn(answer(&[(1, 10, 3), (2, 10, 1), (3, 20, 1)], false), &CONFIG, now);
        known.learn(answer(&[(2, 10, 5)], true), &CONFIG, now);
        assert_eq!(shares(&known), [(2, 10, 5), (3, 20, 1)]);
        known.learn(answer(&[(2, 10, 5)], false), &CONFIG, now);
        assert_eq!(shares(&known), [(2, 10, 5)]);
    }

    #[test]
    fn addresses_of_a_name_that_has_none_any_more_are_held_for_a_while() {
        let (mut known, now) = (Known::default(), Instant::now());
        let seconds = Duration::from_secs;
        known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[])), &CONFIG, now);
        let reason = || "no such name".to_owned();
        assert_eq!(known.learn(absent(Some(2)), &CONFIG, now), (Told::Failing(reason()), seconds(2)));
        assert_eq!(known.learn(absent(Some(600)), &CONFIG, now + seconds(29)), (Told::Nothing, seconds(5)));
        // Failures in between say nothing of the name.
        known.learn(failed(), &CONFIG, now + seconds(29));
        assert!(!known.is_empty());
        assert_eq!(known.learn(absent(None), &CONFIG, now + seconds(30)), (Told::Dropped(reason()), seconds(5)));
        assert!(known.is_empty());
        assert_eq!(known.learn(absent(None), &CONFIG, now + seconds(60)).0, Told::Nothing);
        // It may come back.
        assert_eq!(known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[])), &CONFIG, now).0, Told::Resolved);
        assert_eq!(known.absent_since, None);
    }
}
