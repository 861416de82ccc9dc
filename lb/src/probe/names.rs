//! Keeps the host names of backends resolved. One task per name looks it up again whenever the last answer expires, so
//! that no name waits for another. A name that several pools use is looked up once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::resolver::{self, Answer, Host, LookupError, MAX_ADDRESSES, Question, Resolver, reachable};
use crate::backend::{Backend, Resolution, Share};
use crate::config::ResolverConfig;
use crate::config::backend::{AdminState, BackendAddress};
use crate::control::Control;
use crate::pool::Pool;

/// The longest pause after a failed lookup, and after an answer without addresses.
const MAX_PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// How long traffic and the start wait for the first answer, before the name counts as having no address.
const FIRST_ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The limit on one lookup, whatever the number of servers, attempts and search domains.
const MAX_LOOKUP_TIME: Duration = Duration::from_secs(60);

/// A log line lists at most this many addresses.
const MAX_LISTED: usize = 8;

/// Follows the names in snapshots until dropped. Notifies `moved` when one has new addresses.
pub(super) async fn keep_resolved(control: &Arc<Control>, moved: &Arc<Notify>) {
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
                    // A new pool gets what is known already.
                    asking.take_up(&lock(&task.known));
                    task
                }
                task => {
                    // What is known stays, however long nobody looks the name up. With other settings it is looked up
                    // at once.
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

/// Every name of a backend, and whether it is looked up: not if all its backends are down.
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

/// What is known about one name, and the task that looks it up, which ends on drop.
struct Task {
    known: Arc<Mutex<Known>>,
    config: ResolverConfig,
    /// `None`: it is not looked up.
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

/// What is known about a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// The last addresses of each host: the name itself, or the targets of its SRV records.
    hosts: BTreeMap<String, Addresses>,
    /// The addresses of all hosts that are used.
    all: Addresses,
    /// For an SRV name: how traffic is shared between them.
    shares: BTreeMap<SocketAddr, Share>,
    /// Since when DNS has answered that there is no address. A failure in between resets it.
    absent_since: Option<Instant>,
    /// Why the last lookup failed. Logged once for consecutive failures.
    error: Option<String>,
    /// Targets of SRV records without an address, or whose lookup failed, and why. Logged once for consecutive
    /// failures.
    problems: BTreeMap<String, String>,
    was_asked: bool,
    /// How many addresses of the last answer are not used because of the limit.
    left_out: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Addresses {
    v4: BTreeSet<SocketAddrV4>,
    v6: BTreeSet<SocketAddrV6>,
}

impl Addresses {
    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn to_vec(&self) -> Vec<SocketAddr> {
        let (v4, v6) = (self.v4.iter().copied().map(SocketAddr::V4), self.v6.iter().copied().map(SocketAddr::V6));
        v4.chain(v6).collect()
    }

    /// The same addresses with another port.
    fn at(&self, port: u16) -> Self {
        let v4 = self.v4.iter().map(|address| SocketAddrV4::new(*address.ip(), port));
        let v6 = self.v6.iter().map(|address| SocketAddrV6::new(*address.ip(), port, 0, 0));
        Self { v4: v4.collect(), v6: v6.collect() }
    }

    fn contains(&self, address: &SocketAddr) -> bool {
        match address {
            SocketAddr::V4(address) => self.v4.contains(address),
            SocketAddr::V6(address) => self.v6.contains(address),
        }
    }
}

/// What the result of a lookup changes.
#[derive(Debug, PartialEq, Eq)]
enum NameEvent {
    Resolved,
    /// This many addresses are left out. Logged once, until there are none.
    TooMany(usize),
    /// The last addresses, if any, stay in use.
    Failing(String),
    /// The last addresses are no longer used.
    Dropped(String),
    /// A target of an SRV record has no address, or its last ones stay in use.
    HostFailing {
        host: String,
        reason: String,
    },
    HostResolved(String),
}

impl Known {
    fn addresses(&self) -> Vec<SocketAddr> {
        reachable(self.all.to_vec())
    }

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Applies the result of a lookup. Returns what to log, and when to look up again.
    fn learn(
        &mut self,
        ended: Result<Answer, LookupError>,
        config: &ResolverConfig,
        now: Instant,
    ) -> (Vec<NameEvent>, Duration) {
        self.was_asked = true;
        let soon = MAX_PAUSE_AFTER_FAILURE.min(config.max_ttl);
        match ended {
            Ok(answer) => {
                let has_failed = answer.hosts.iter().any(Host::has_failed);
                let pause = if has_failed { answer.ttl.min(soon) } else { answer.ttl };
                // If no host got an address, the lookup as a whole has failed.
                let nowhere = answer.hosts.iter().all(Host::has_none).then(|| {
                    let (host, reason) = answer.problems().next().unwrap_or_default();
                    format!("{host}: {reason}")
                });
                let mut events = Vec::new();
                if nowhere.is_none() {
                    self.absent_since = None;
                    events.extend(self.error.take().map(|_| NameEvent::Resolved));
                    events.extend(self.note_problems(&answer));
                }
                let left_out = self.take_in(answer);
                if std::mem::replace(&mut self.left_out, left_out) == 0 && left_out > 0 {
                    events.push(NameEvent::TooMany(left_out));
                }
                events.extend(nowhere.and_then(|reason| self.fail(reason)));
                (events, pause)
            }
            Err(LookupError::Failed { reason }) => (self.fail(reason).into_iter().collect(), soon),
            Err(LookupError::Absent { reason, ttl }) => {
                let since = *self.absent_since.get_or_insert(now);
                let is_over = now.saturating_duration_since(since) >= config.hold;
                let is_news = self.error.is_none();
                self.error = Some(reason.clone());
                let events = if is_over && !self.is_empty() {
                    (self.hosts, self.all) = (BTreeMap::new(), Addresses::default());
                    Some(NameEvent::Dropped(reason))
                } else {
                    is_news.then_some(NameEvent::Failing(reason))
                };
                let pause = ttl.unwrap_or(soon).clamp(config.min_ttl.min(soon), soon);
                (events.into_iter().collect(), pause)
            }
        }
    }

    /// Applies a failed lookup.
    fn fail(&mut self, reason: String) -> Option<NameEvent> {
        self.absent_since = None;
        let is_news = self.error.is_none();
        self.error = Some(reason.clone());
        is_news.then_some(NameEvent::Failing(reason))
    }

    /// Replaces the hosts by those of the answer. A host whose lookup failed keeps its last addresses, and so does each
    /// address family. If no address at all would remain, all the last ones stay. Returns how many addresses are left
    /// out.
    fn take_in(&mut self, answer: Answer) -> usize {
        let mut hosts = BTreeMap::new();
        let (mut all, mut shares) = (Addresses::default(), BTreeMap::new());
        for Host { name, port, record, v4, v6, .. } in answer.hosts {
            let last = self.hosts.get(&name).map(|last| last.at(port)).unwrap_or_default();
            let found = Addresses { v4: v4.unwrap_or(last.v4), v6: v6.unwrap_or(last.v6) };
            all.v4.extend(&found.v4);
            all.v6.extend(&found.v6);
            if let Some(record) = record {
                resolver::share(&mut shares, record, &found.to_vec());
            }
            hosts.insert(name, found);
        }
        if all.is_empty() {
            return self.left_out;
        }
        let left_out = answer.left_out + resolver::bound(&mut all.v4, &mut all.v6);
        shares.retain(|address, _| all.contains(address));
        (self.hosts, self.all, self.shares) = (hosts, all, shares);
        left_out
    }

    /// Which hosts have started or stopped failing.
    fn note_problems(&mut self, answer: &Answer) -> Vec<NameEvent> {
        let problems: BTreeMap<_, _> = answer.problems().map(|(host, reason)| (host, reason.to_owned())).collect();
        let before = std::mem::replace(&mut self.problems, problems);
        let begun = self.problems.iter().filter(|(host, _)| !before.contains_key(*host));
        let begun = begun.map(|(host, reason)| NameEvent::HostFailing { host: host.clone(), reason: reason.clone() });
        let is_listed = |wanted: &str| answer.hosts.iter().any(|host| format!("{}:{}", host.name, host.port) == wanted);
        let over = before.keys().filter(|host| !self.problems.contains_key(*host) && is_listed(host));
        begun.chain(over.map(|host| NameEvent::HostResolved(host.clone()))).collect()
    }

    /// Applies the known part of an SRV answer while some of its targets are still looked up.
    fn learn_early(&mut self, answer: Answer) {
        self.take_in(answer);
        self.was_asked |= !self.is_empty();
    }
}

/// One name, and what is needed to look it up.
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

    /// Looks the name up again and again.
    async fn run(&self, known: &Mutex<Known>) {
        self.take_up(&lock(known));
        loop {
            let ended = self.ask(known).await;
            let (events, pause) = lock(known).learn(ended, self.config, Instant::now());
            events.iter().for_each(|event| self.log(event, &lock(known)));
            self.note(&lock(known));
            self.take_up(&lock(known));
            tokio::time::sleep(pause).await;
        }
    }

    /// Looks the name up once. Waiters for the first answer of all do not wait long.
    async fn ask(&self, known: &Mutex<Known>) -> Result<Answer, LookupError> {
        let early = |answer| {
            lock(known).learn_early(answer);
            self.take_up(&lock(known));
        };
        let question = self.resolver.ask(Question::of(self.address), self.config, early);
        let asking = tokio::time::timeout(MAX_LOOKUP_TIME, question);
        let late = |_| Err(LookupError::Failed { reason: "no DNS server answers in time".to_owned() });
        let mut asking = std::pin::pin!(asking);
        if !lock(known).was_asked {
            match tokio::time::timeout(FIRST_ANSWER_TIMEOUT, &mut asking).await {
                Ok(ended) => return ended.unwrap_or_else(late),
                Err(_) if lock(known).was_asked => {}
                Err(_) => self.each(|_, backend| backend.record_unresolved()),
            }
        }
        asking.await.unwrap_or_else(late)
    }

    fn log(&self, event: &NameEvent, known: &Known) {
        let (backend, pools) = (self.address, self.pools());
        match event {
            NameEvent::Resolved => tracing::info!(%pools, %backend, "the name of a backend is resolved again"),
            NameEvent::TooMany(left_out) => {
                let used = MAX_ADDRESSES;
                tracing::warn!(%pools, %backend, used, left_out, "the name of a backend has too many addresses: some are left out");
            }
            NameEvent::Failing(reason) if known.is_empty() => {
                tracing::warn!(%pools, %backend, reason, "the name of a backend is not resolved: nothing can be sent there");
            }
            NameEvent::Failing(reason) => {
                tracing::warn!(%pools, %backend, reason, "the name of a backend is not resolved: its last addresses are used on");
            }
            NameEvent::Dropped(reason) => {
                tracing::warn!(%pools, %backend, reason, "the name of a backend has no address any more: nothing is sent there");
            }
            NameEvent::HostFailing { host, reason } => {
                tracing::warn!(%pools, %backend, %host, reason, "a host of a service is not resolved: it has its last addresses, or none");
            }
            NameEvent::HostResolved(host) => {
                tracing::info!(%pools, %backend, %host, "a host of a service is resolved again")
            }
        }
    }

    /// The pools that use the name.
    fn pools(&self) -> String {
        let snapshot = self.control.snapshot();
        let writes =
            |pool: &&Arc<Pool>| pool.plan().backends().any(|(member, _)| member.backend.address == *self.address);
        let pools: Vec<_> = snapshot.pools.iter().filter(writes).map(|pool| pool.name.as_str().to_owned()).collect();
        pools.join(", ")
    }

    /// Counts the finished lookup, and shows it at the backends.
    fn note(&self, known: &Known) {
        let resolution = Resolution { at: Instant::now(), error: known.error.clone() };
        self.each(|_, backend| {
            backend.asked(resolution.clone());
            if let Some(resolutions) = &backend.metrics.resolutions {
                if known.error.is_none() { resolutions.succeeded.inc() } else { resolutions.failed.inc() }
            }
        });
    }

    /// Gives the backends of this name its known addresses.
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
                tracing::info!(pool = %pool.name, backend = %backend.address, joined, left, "a name has other addresses");
            } else if !moved.joined.is_empty() {
                let joined = listed(&moved.joined);
                tracing::info!(pool = %pool.name, backend = %backend.address, joined, "a name has further addresses");
            }
            if addresses.is_empty() {
                backend.record_unresolved();
            }
        });
    }

    /// Calls `does` with every backend of this name. Pools whose backends change update their candidates.
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

/// A panic of a holder leaves what is known unchanged.
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

    fn host(name: &str, v4: Option<&[[u8; 4]]>, v6: Option<&[u16]>) -> Host {
        Host {
            name: name.to_owned(),
            port: 80,
            v4: v4.map(|all| all.iter().map(|&ip| SocketAddrV4::new(ip.into(), 80)).collect()),
            v6: v6.map(|all| {
                let address = |last| SocketAddrV6::new(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last), 80, 0, 0);
                all.iter().map(|&last| address(last)).collect()
            }),
            ..Host::default()
        }
    }

    fn answer(v4: Option<&[[u8; 4]]>, v6: Option<&[u16]>) -> Result<Answer, LookupError> {
        Ok(Answer { hosts: vec![host("web", v4, v6)], left_out: 0, ttl: Duration::from_secs(7) })
    }

    /// The target of an SRV record at 10.0.0.`last`; `None`: its lookup fails.
    fn listed_host(name: &str, record: (u16, u16), port: u16, last: Option<u8>) -> Host {
        let set = |last| BTreeSet::from([SocketAddrV4::new([10, 0, 0, last].into(), port)]);
        let (v4, v6) = (last.map(set), last.map(|_| BTreeSet::new()));
        let problem = last.is_none().then(|| "SERVFAIL".to_owned());
        Host { name: name.to_owned(), port, record: Some(record), v4, v6, problem }
    }

    fn service(hosts: &[Host]) -> Result<Answer, LookupError> {
        Ok(Answer { hosts: hosts.to_vec(), left_out: 0, ttl: Duration::from_secs(7) })
    }

    fn addresses(known: &Known) -> Vec<String> {
        known.all.to_vec().iter().map(ToString::to_string).collect()
    }

    fn failed() -> Result<Answer, LookupError> {
        Err(LookupError::Failed { reason: "SERVFAIL".to_owned() })
    }

    fn absent(ttl: Option<u64>) -> Result<Answer, LookupError> {
        Err(LookupError::Absent { reason: "no such name".to_owned(), ttl: ttl.map(Duration::from_secs) })
    }

    #[test]
    fn the_last_addresses_stay_while_dns_fails_and_the_failure_is_logged_once() {
        let (mut known, now) = (Known::default(), Instant::now());
        let seconds = Duration::from_secs;
        assert_eq!(known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[])), &CONFIG, now), (vec![], seconds(7)));
        let before = known.addresses();
        assert_eq!(before, ["10.0.0.1:80".parse().expect("an address")]);
        let events = NameEvent::Failing("SERVFAIL".to_owned());
        assert_eq!(known.learn(failed(), &CONFIG, now), (vec![events], seconds(5)));
        assert_eq!(known.learn(failed(), &CONFIG, now + seconds(9999)), (vec![], seconds(5)));
        assert_eq!(known.addresses(), before);
        assert_eq!(known.learn(answer(Some(&[[10, 0, 0, 2]]), Some(&[])), &CONFIG, now).0, [NameEvent::Resolved]);
        assert_eq!(known.addresses(), ["10.0.0.2:80".parse().expect("an address")]);
    }

    #[test]
    fn surplus_addresses_are_left_out_and_logged_once() {
        let (mut known, now) = (Known::default(), Instant::now());
        let many = |count: u8| (0..count).map(|last| [10, 0, 0, last]).collect::<Vec<_>>();
        let mut learn = |v4: u8| {
            let events = known.learn(answer(Some(&many(v4)), None), &CONFIG, now).0;
            (events, known.all.to_vec().len())
        };
        assert_eq!(learn(128), (vec![], 128));
        assert_eq!(learn(200), (vec![NameEvent::TooMany(72)], 128));
        assert_eq!(learn(201), (vec![], 128));
        assert_eq!(learn(3), (vec![], 3));
        assert_eq!(learn(130), (vec![NameEvent::TooMany(2)], 128));
    }

    #[test]
    fn few_addresses_are_listed_in_a_line() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let all: Vec<_> = (1..=128).map(address).collect();
        assert_eq!(listed(&all[..2]), "10.0.0.1:80, 10.0.0.2:80");
        assert!(listed(&all[..8]).ends_with("10.0.0.8:80"));
        assert!(listed(&all).ends_with(", 10.0.0.8:80 and 120 more"), "{}", listed(&all));
    }

    #[test]
    fn an_address_family_whose_lookup_fails_keeps_its_addresses() {
        let (mut known, now) = (Known::default(), Instant::now());
        known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[1])), &CONFIG, now);
        known.learn(answer(Some(&[[10, 0, 0, 2]]), None), &CONFIG, now);
        assert_eq!((known.all.v4.len(), known.all.v6.len()), (1, 1));
        assert!(known.all.v4.contains(&"10.0.0.2:80".parse().expect("an address")));
        known.learn(answer(None, Some(&[])), &CONFIG, now);
        assert_eq!((known.all.v4.len(), known.all.v6.len()), (1, 0));
    }

    #[test]
    fn a_failing_host_keeps_its_last_addresses_while_srv_lists_it() {
        let (mut known, now) = (Known::default(), Instant::now());
        let one = |port, last| listed_host("one", (10, 3), port, last);
        let two = |port, last| listed_host("two", (10, 1), port, last);
        let later = |last| listed_host("later", (20, 1), 80, last);
        let mut learn = |hosts: &[Host]| {
            let (events, pause) = known.learn(service(hosts), &CONFIG, now);
            (events, pause.as_secs(), addresses(&known))
        };
        let failing = |host: &str| NameEvent::HostFailing { host: host.to_owned(), reason: "SERVFAIL".to_owned() };
        let resolved = |host: &str| NameEvent::HostResolved(host.to_owned());
        let strings = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        // A host that never had an address has none, and is looked up again soon.
        let found = learn(&[one(80, Some(1)), two(80, None)]);
        assert_eq!(found, (vec![failing("two:80")], 5, strings(&["10.0.0.1:80"])));
        let found = learn(&[one(81, Some(1)), two(80, None)]);
        assert_eq!(found, (vec![], 5, strings(&["10.0.0.1:81"])));
        let found = learn(&[one(81, Some(1)), two(80, Some(2)), later(Some(3))]);
        assert_eq!(found, (vec![resolved("two:80")], 7, strings(&["10.0.0.1:81", "10.0.0.2:80", "10.0.0.3:80"])));
        // The addresses are those of the host, and the port is that of the record.
        let found = learn(&[one(81, Some(4)), two(90, None), later(None)]);
        let events = vec![failing("later:80"), failing("two:90")];
        assert_eq!(found, (events, 5, strings(&["10.0.0.2:90", "10.0.0.3:80", "10.0.0.4:81"])));
        let found = learn(&[one(81, Some(4)), later(None)]);
        assert_eq!(found, (vec![], 5, strings(&["10.0.0.3:80", "10.0.0.4:81"])));
        let shares: Vec<_> = known.shares.values().map(|share| (share.priority, share.weight)).collect();
        assert_eq!(shares, [(20, 1000), (10, 3000)]);
        // The last addresses of all are better than none.
        let (events, _) = known.learn(service(&[two(80, None)]), &CONFIG, now);
        assert_eq!(events, [NameEvent::Failing("two:80: SERVFAIL".to_owned())]);
        assert_eq!(addresses(&known), ["10.0.0.3:80", "10.0.0.4:81"]);
    }

    #[test]
    fn pending_hosts_delay_no_other_and_are_not_logged() {
        let (mut known, now) = (Known::default(), Instant::now());
        let both = |two| [listed_host("one", (1, 1), 80, Some(1)), listed_host("two", (1, 1), 80, two)];
        let early = |hosts: &[Host]| Answer { hosts: hosts.to_vec(), ..Answer::default() };
        known.learn_early(early(&[listed_host("two", (1, 1), 80, None)]));
        assert!(!known.was_asked, "nothing is known yet");
        known.learn_early(early(&both(None)));
        assert_eq!((known.was_asked, addresses(&known)), (true, vec!["10.0.0.1:80".to_owned()]));
        assert_eq!(known.learn(service(&both(Some(2))), &CONFIG, now).0, []);
        known.learn_early(early(&both(None)));
        assert_eq!(addresses(&known), ["10.0.0.1:80", "10.0.0.2:80"]);
    }

    #[test]
    fn addresses_of_an_emptied_name_are_kept_for_a_while() {
        let (mut known, now) = (Known::default(), Instant::now());
        let seconds = Duration::from_secs;
        known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[])), &CONFIG, now);
        let reason = || "no such name".to_owned();
        let failing = || vec![NameEvent::Failing(reason())];
        assert_eq!(known.learn(absent(Some(2)), &CONFIG, now), (failing(), seconds(2)));
        assert_eq!(known.learn(absent(Some(600)), &CONFIG, now + seconds(29)), (vec![], seconds(5)));
        // A failure says nothing about the name, so the time starts again after it.
        known.learn(failed(), &CONFIG, now + seconds(29));
        assert_eq!(known.learn(absent(None), &CONFIG, now + seconds(300)), (vec![], seconds(5)));
        known.learn(absent(None), &CONFIG, now + seconds(329));
        assert!(!known.is_empty());
        assert_eq!(
            known.learn(absent(None), &CONFIG, now + seconds(330)),
            (vec![NameEvent::Dropped(reason())], seconds(5))
        );
        assert!(known.is_empty());
        assert_eq!(known.learn(absent(None), &CONFIG, now + seconds(360)).0, []);
        // The addresses may return.
        assert_eq!(known.learn(answer(Some(&[[10, 0, 0, 1]]), Some(&[])), &CONFIG, now).0, [NameEvent::Resolved]);
        assert_eq!(known.absent_since, None);
    }
}
