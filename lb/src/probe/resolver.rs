//! Looks up the addresses of a name as the system does: first in `/etc/hosts`, then in DNS with the servers, search
//! domains and options of `/etc/resolv.conf`, or with the configured servers. `hickory-resolver` handles the messages.
//! Its own cache, search list and `/etc/hosts` lookup are not used: it does not give up when a search domain fails to
//! answer, and does not find a name in `/etc/hosts` if a search domain could be appended.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, config, system_conf};

use crate::backend::Share;
use crate::config::ResolverConfig;
use crate::config::backend::BackendAddress;

const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
/// How long a result from `/etc/hosts` is used.
const HOSTS_TTL: Duration = Duration::from_secs(5);

/// Limit on the addresses of one name and on the targets of one SRV name: each address is an endpoint with its own
/// probes.
pub(crate) const MAX_ADDRESSES: usize = 128;

/// How long targets of SRV records are waited for before the finished ones are used: less than the first answer may
/// take.
const HOSTS_TIMEOUT: Duration = Duration::from_millis(500);

/// What is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question<'a> {
    /// The addresses of a host, with this port.
    Host(&'a str, u16),
    /// The targets of an SRV name, with their ports (RFC 2782).
    Service(&'a str),
}

/// The addresses of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The host itself, or the targets of the SRV records, by priority. At least one.
    pub hosts: Vec<Host>,
    /// How many hosts and addresses are left out because of [`MAX_ADDRESSES`].
    pub left_out: usize,
    /// How long the answer is valid.
    pub ttl: Duration,
}

/// One host of an answer, with its port. The addresses of a family whose lookup failed are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    pub name: String,
    pub port: u16,
    /// Priority and weight of its SRV record; `None`: it comes from no SRV record.
    pub record: Option<(u16, u16)>,
    pub v4: Option<BTreeSet<SocketAddrV4>>,
    pub v6: Option<BTreeSet<SocketAddrV6>>,
    /// For a target of an SRV record: why it has no address, or why none is known.
    pub problem: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LookupError {
    /// DNS answers that the name does not exist, or has no address; with how long that is valid, if given.
    Absent { reason: String, ttl: Option<Duration> },
    /// The lookup failed: servers fail, or do not answer.
    Failed { reason: String },
}

/// Looks names up by the current configuration and the system's files, whose changes it follows.
#[derive(Debug, Default)]
pub(crate) struct Resolver(Mutex<Option<Arc<Sources>>>);

/// Where answers come from.
#[derive(Debug)]
struct Sources {
    config: ResolverConfig,
    /// The modification times of the system's files that were read.
    changed: [Option<SystemTime>; 2],
    hosts: Hosts,
    /// The DNS servers.
    servers: Vec<SocketAddr>,
    dns: Result<TokioResolver, String>,
    search: Vec<Name>,
    /// A name with at least this many dots is tried unchanged before search domains are appended.
    ndots: usize,
}

impl LookupError {
    /// The reason as text.
    pub(crate) fn reason(&self) -> &str {
        match self {
            Self::Absent { reason, .. } | Self::Failed { reason } => reason,
        }
    }
}

impl Host {
    /// Whether the lookup of its addresses failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.v4.is_none() && self.v6.is_none()
    }

    pub(crate) fn has_none(&self) -> bool {
        self.v4.iter().all(BTreeSet::is_empty) && self.v6.iter().all(BTreeSet::is_empty)
    }
}

impl Answer {
    /// Each host that is not used, or whose last addresses stay in use, and why.
    pub(crate) fn problems(&self) -> impl Iterator<Item = (String, &str)> {
        self.hosts.iter().filter_map(|host| Some((format!("{}:{}", host.name, host.port), host.problem.as_deref()?)))
    }
}

impl<'a> Question<'a> {
    /// What has to be looked up for a backend address with a name.
    pub(crate) fn of(address: &'a BackendAddress) -> Self {
        match address.host_and_port() {
            Some((host, port)) => Self::Host(host, port),
            None => Self::Service(address.service().unwrap_or_default()),
        }
    }
}

/// The addresses of one host. Those of a family whose lookup failed are unknown.
#[derive(Debug, Default)]
struct Found {
    v4: Option<BTreeSet<SocketAddrV4>>,
    v6: Option<BTreeSet<SocketAddrV6>>,
    left_out: usize,
    ttl: Duration,
}

/// The part of one address family.
enum Part {
    Found(Vec<IpAddr>, Duration),
    Absent(String, Option<Duration>),
    Failed(String),
}

impl Resolver {
    /// Answers a question. If some targets of SRV records take long, `early` first gets an answer with the others, in
    /// which nothing is known of the pending ones.
    pub(crate) async fn ask(
        &self,
        question: Question<'_>,
        config: &ResolverConfig,
        early: impl FnMut(Answer),
    ) -> Result<Answer, LookupError> {
        let sources = self.sources(config);
        match question {
            Question::Host(host, port) => {
                let Found { v4, v6, left_out, ttl } = sources.addresses(host, port).await?;
                let host = Host { name: host.to_owned(), port, record: None, v4, v6, problem: None };
                Ok(Answer { hosts: vec![host], left_out, ttl })
            }
            Question::Service(name) => sources.services(name, early).await,
        }
    }

    /// The DNS servers that are used with this configuration.
    pub(crate) fn servers(&self, config: &ResolverConfig) -> Vec<SocketAddr> {
        self.sources(config).servers.clone()
    }

    /// The current sources of answers.
    fn sources(&self, config: &ResolverConfig) -> Arc<Sources> {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = [RESOLV_CONF, HOSTS].map(|file| std::fs::metadata(file).and_then(|file| file.modified()).ok());
        match &*current {
            Some(sources) if sources.config == *config && sources.changed == changed => Arc::clone(sources),
            _ => Arc::clone(current.insert(Arc::new(Sources::new(config, changed)))),
        }
    }
}

impl Sources {
    fn new(config: &ResolverConfig, changed: [Option<SystemTime>; 2]) -> Self {
        let hosts = Hosts::from_system().unwrap_or_default();
        let (servers, mut options) = match config.servers.is_empty() {
            true => system(Path::new(RESOLV_CONF)),
            false => {
                let servers = config.servers.iter().map(|&server| name_server(server)).collect();
                (config::ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
            }
        };
        options.timeout = config.timeout.unwrap_or(options.timeout);
        // The library counts retries.
        options.attempts = config.attempts.map_or(options.attempts, usize::from).saturating_sub(1);
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let search = match servers.search() {
            [] => servers.domain().cloned().into_iter().collect(),
            search => search.to_vec(),
        };
        let ndots = options.ndots;
        let server = |server: &NameServerConfig| {
            SocketAddr::new(server.ip, server.connections.first().map_or(53, |connection| connection.port))
        };
        let addresses = servers.name_servers().iter().map(server).collect();
        let builder = TokioResolver::builder_with_config(servers, TokioRuntimeProvider::default());
        let dns = builder.with_options(options).build().map_err(|e| e.to_string());
        Self { config: config.clone(), changed, hosts, servers: addresses, dns, search, ndots }
    }

    async fn addresses(&self, host: &str, port: u16) -> Result<Found, LookupError> {
        let name = Name::from_ascii(host).map_err(|e| failed(format!("{host} is not a DNS name: {e}")))?;
        if let Some(ended) = self.in_hosts(&name, port) {
            return ended;
        }
        let dns = self.dns.as_ref().map_err(|e| failed(e.clone()))?;
        let mut absent = (format!("{host} does not exist"), None);
        let mut failure = None;
        for name in names(&name, &self.search, self.ndots) {
            let (v4, v6) = tokio::join!(ask(dns, &name, RecordType::A), ask(dns, &name, RecordType::AAAA));
            match (v4, v6) {
                (Part::Found(v4, ttl_4), Part::Found(v6, ttl_6)) => {
                    return Ok(self.answer(&[v4, v6].concat(), port, ttl_4.min(ttl_6)));
                }
                (Part::Found(v4, ttl), Part::Absent(..)) => return Ok(self.answer(&v4, port, ttl)),
                (Part::Absent(..), Part::Found(v6, ttl)) => return Ok(self.answer(&v6, port, ttl)),
                (Part::Found(v4, ttl), Part::Failed(_)) => {
                    return Ok(Found { v6: None, ..self.answer(&v4, port, ttl) });
                }
                (Part::Failed(_), Part::Found(v6, ttl)) => {
                    return Ok(Found { v4: None, ..self.answer(&v6, port, ttl) });
                }
                (Part::Absent(reason, ttl), Part::Absent(_, other)) => absent = (reason, ttl.or(other)),
                (Part::Failed(reason), _) | (_, Part::Failed(reason)) => {
                    failure.get_or_insert(reason);
                }
            }
        }
        // As long as one of them may be the right name, nothing is known.
        Err(match failure {
            Some(reason) => failed(reason),
            None => LookupError::Absent { reason: absent.0, ttl: absent.1 },
        })
    }

    /// Looks up the targets of all SRV records, each independently of the others.
    async fn services(&self, service: &str, mut early: impl FnMut(Answer)) -> Result<Answer, LookupError> {
        let name = Name::from_ascii(service).map_err(|e| failed(format!("{service} is not a DNS name: {e}")))?;
        let dns = self.dns.as_ref().map_err(|e| failed(e.clone()))?;
        let mut ended = Err(failed(String::new()));
        for name in names(&name, &self.search, self.ndots) {
            ended = lookup(dns, &name, RecordType::SRV, "service").await;
            if !matches!(ended, Err(LookupError::Absent { .. })) {
                break;
            }
        }
        let (records, ttl) = ended?;
        let records = records.iter().filter_map(|data| match data {
            // A root target means that there is no such service.
            RData::SRV(srv) if !srv.target.is_root() => Some(srv),
            _ => None,
        });
        let mut records: Vec<_> =
            records.map(|srv| (srv.priority, srv.target.to_ascii(), srv.port, srv.weight)).collect();
        // The same ones each time, whatever the order of the answer.
        records.sort_unstable();
        let left_out = records.len().saturating_sub(MAX_ADDRESSES);
        records.truncate(MAX_ADDRESSES);
        let host = |(priority, name, port, weight): &(u16, String, u16, u16)| Host {
            name: name.strip_suffix('.').unwrap_or(name).to_owned(),
            port: *port,
            record: Some((*priority, *weight)),
            problem: Some("no DNS server has answered yet".to_owned()),
            ..Host::default()
        };
        let hosts = records.iter().map(host).collect();
        let mut all = Answer { hosts, left_out, ttl };
        let ask = records.iter().enumerate().map(|(index, (_, host, port, _))| async move {
            match *port {
                0 => (index, Err(LookupError::Absent { reason: "its record has port 0".to_owned(), ttl: None })),
                port => (index, self.addresses(host, port).await),
            }
        });
        let mut asked: FuturesUnordered<_> = ask.collect();
        let mut patience = std::pin::pin!(tokio::time::sleep(HOSTS_TIMEOUT));
        let mut is_waiting = true;
        loop {
            let (index, ended) = tokio::select! {
                biased;
                ended = asked.next() => match ended {
                    Some(ended) => ended,
                    None => break,
                },
                () = &mut patience, if is_waiting => {
                    is_waiting = false;
                    early(all.clone());
                    continue;
                }
            };
            let Some(host) = all.hosts.get_mut(index) else { continue };
            host.problem = None;
            match ended {
                Ok(Found { v4, v6, left_out, ttl }) => {
                    (host.v4, host.v6) = (v4, v6);
                    all.left_out += left_out;
                    all.ttl = all.ttl.min(ttl);
                }
                Err(LookupError::Absent { reason, .. }) => {
                    (host.v4, host.v6) = (Some(BTreeSet::new()), Some(BTreeSet::new()));
                    host.problem = Some(reason);
                }
                Err(LookupError::Failed { reason }) => host.problem = Some(reason),
            }
        }
        all.ttl = all.ttl.clamp(self.config.min_ttl, self.config.max_ttl);
        if all.hosts.iter().all(|host| host.has_none() && !host.has_failed()) {
            let problem =
                all.problems().next().map(|(host, problem)| format!(": {host}: {problem}")).unwrap_or_default();
            let reason = format!("{service} has no host with an address{problem}");
            return Err(LookupError::Absent { reason, ttl: None });
        }
        Ok(all)
    }

    fn in_hosts(&self, name: &Name, port: u16) -> Option<Result<Found, LookupError>> {
        let of = |family| self.hosts.lookup_static_host(&Query::query(name.clone(), family));
        let found: Vec<_> = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of).collect();
        let addresses: Vec<_> =
            found.iter().flat_map(|found| found.answers()).filter_map(|r| r.data.ip_addr()).collect();
        if addresses.is_empty() {
            return None;
        }
        Some(match addresses.iter().any(is_usable) {
            true => Ok(self.answer(&addresses, port, HOSTS_TTL)),
            false => Err(LookupError::Absent { reason: format!("{name} has no usable address in {HOSTS}"), ttl: None }),
        })
    }

    fn answer(&self, addresses: &[IpAddr], port: u16, ttl: Duration) -> Found {
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        for address in addresses.iter().filter(|address| is_usable(address)) {
            match address.to_canonical() {
                IpAddr::V4(address) => v4.insert(SocketAddrV4::new(address, port)),
                IpAddr::V6(address) => v6.insert(SocketAddrV6::new(address, port, 0, 0)),
            };
        }
        let left_out = bound(&mut v4, &mut v6);
        let ttl = ttl.clamp(self.config.min_ttl, self.config.max_ttl);
        Found { v4: Some(v4), v6: Some(v6), left_out, ttl }
    }
}

/// Adds the addresses of one SRV record, which share its weight. Weight 0 means a very small share beside others, and
/// equal shares if all have it (RFC 2782). An address of several records gets the sum of those with its first priority.
pub(crate) fn share(
    shares: &mut BTreeMap<SocketAddr, Share>,
    (priority, weight): (u16, u16),
    addresses: &[SocketAddr],
) {
    const OF_ONE: u32 = 1000;
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let weight = (u32::from(weight) * OF_ONE / count).max(1);
    for address in addresses {
        let share = shares.entry(*address).or_insert(Share { priority, weight: 0 });
        if share.priority == priority {
            share.weight = share.weight.saturating_add(weight);
        }
    }
}

/// Leaves out addresses beyond [`MAX_ADDRESSES`], the highest first, so that each family keeps at least half of them.
/// Returns how many.
pub(crate) fn bound(v4: &mut BTreeSet<SocketAddrV4>, v6: &mut BTreeSet<SocketAddrV6>) -> usize {
    let before = v4.len() + v6.len();
    let half = MAX_ADDRESSES / 2;
    while v6.len() > half.max(MAX_ADDRESSES.saturating_sub(v4.len())) {
        v6.pop_last();
    }
    while v4.len() + v6.len() > MAX_ADDRESSES {
        v4.pop_last();
    }
    before - v4.len() - v6.len()
}

/// Whether a server can have this address: `0.0.0.0` and `::` would lead to this machine, and multicast to many.
fn is_usable(address: &IpAddr) -> bool {
    let address = address.to_canonical();
    !address.is_unspecified() && !address.is_multicast() && address != IpAddr::V4(Ipv4Addr::BROADCAST)
}

/// The servers and options of the system. Without such a file, or servers in it, localhost is used (resolv.conf(5)).
fn system(file: &Path) -> (config::ResolverConfig, ResolverOpts) {
    let text = std::fs::read(file).unwrap_or_default();
    let read = system_conf::parse_resolv_conf(&text).or_else(|_| {
        let with_server = [&text[..], b"\nnameserver 127.0.0.1\n"].concat();
        system_conf::parse_resolv_conf(with_server)
    });
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "{} cannot be read: a DNS server on this machine is asked", file.display());
        let servers = vec![name_server(SocketAddr::from(([127, 0, 0, 1], 53)))];
        (config::ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default())
    })
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The names to try, in order (resolv.conf(5)): the name itself first if it has enough dots, else last.
fn names(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    let whole = |mut name: Name| {
        name.set_fqdn(true);
        name
    };
    let mut names: Vec<Name> = Vec::new();
    if !name.is_fqdn() {
        names = search.iter().filter_map(|domain| name.clone().append_domain(domain).ok()).map(whole).collect();
    }
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let position = if dots >= ndots { 0 } else { names.len() };
    names.insert(position, whole(name.clone()));
    names
}

fn failed(reason: String) -> LookupError {
    LookupError::Failed { reason }
}

/// Looks up the addresses of one family.
async fn ask(dns: &TokioResolver, name: &Name, family: RecordType) -> Part {
    match lookup(dns, name, family, "address").await {
        Ok((found, ttl)) => match found.iter().filter_map(RData::ip_addr).filter(is_usable).collect::<Vec<_>>() {
            usable if usable.is_empty() => Part::Absent(format!("{name} has no usable address"), None),
            usable => Part::Found(usable, ttl),
        },
        Err(LookupError::Absent { reason, ttl }) => Part::Absent(reason, ttl),
        Err(LookupError::Failed { reason }) => Part::Failed(reason),
    }
}

/// The records of a name, at least one of this type. `what`: the type in words, for errors.
async fn lookup(
    dns: &TokioResolver,
    name: &Name,
    of: RecordType,
    what: &str,
) -> Result<(Vec<RData>, Duration), LookupError> {
    let seconds = |ttl: u32| Duration::from_secs(ttl.into());
    match dns.lookup(name.clone(), of).await {
        Ok(lookup) => {
            let answers = lookup.answers();
            let data = answers.iter().map(|record| &record.data);
            let records: Vec<_> = data.filter(|data| data.record_type() == of).cloned().collect();
            // The TTLs of CNAME records on the way count, too.
            let ttl = answers.iter().map(|record| record.ttl).min().unwrap_or_default();
            match records.is_empty() {
                true => Err(LookupError::Absent { reason: format!("{name} has no {what}"), ttl: None }),
                false => Ok((records, seconds(ttl))),
            }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let reason = match none.response_code {
                ResponseCode::NoError => format!("{name} has no {what}"),
                _ => format!("{name} does not exist"),
            };
            Err(LookupError::Absent { reason, ttl: none.negative_ttl.map(seconds) })
        }
        Err(NetError::Dns(DnsError::ResponseCode(code))) => Err(failed(format!("the DNS server fails: {code}"))),
        Err(NetError::Timeout) => Err(failed("no DNS server answers in time".to_owned())),
        Err(error) => Err(failed(format!("DNS fails: {error}"))),
    }
}

/// The addresses to which this machine has a route, or all if it has a route to none. Sends no packets.
pub(crate) fn reachable(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let has_route = |address: &&SocketAddr| {
        let any: IpAddr = match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(**address)).is_ok()
    };
    let reachable: Vec<_> = addresses.iter().filter(has_route).copied().collect();
    if reachable.is_empty() { addresses } else { reachable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn search_domains_are_tried_in_the_order_of_resolv_conf() {
        let search =
            ["shop.svc.cluster.local", "svc.cluster.local"].map(|domain| Name::from_ascii(domain).expect("valid"));
        let asked = |name: &str, ndots| {
            let name = Name::from_ascii(name).expect("valid");
            names(&name, &search, ndots).iter().map(Name::to_ascii).collect::<Vec<_>>()
        };
        assert_eq!(asked("web", 1), ["web.shop.svc.cluster.local.", "web.svc.cluster.local.", "web."]);
        assert_eq!(
            asked("web.example", 1),
            ["web.example.", "web.example.shop.svc.cluster.local.", "web.example.svc.cluster.local."]
        );
        assert_eq!(asked("web.example", 5).last().map(String::as_str), Some("web.example."));
        assert_eq!(asked("web.example.", 5), ["web.example."]);
        assert_eq!(names(&Name::from_ascii("web").expect("valid"), &[], 1).len(), 1);
    }

    #[test]
    fn addresses_that_no_server_can_have_are_unusable() {
        for bad in ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "239.1.2.3", "ff02::1", "255.255.255.255"] {
            assert!(!is_usable(&bad.parse().expect("an address")), "{bad}");
        }
        for good in ["127.0.0.1", "10.0.0.255", "::1", "fd00::1", "::ffff:10.0.0.1"] {
            assert!(is_usable(&good.parse().expect("an address")), "{good}");
        }
    }

    #[test]
    fn addresses_beyond_the_limit_are_dropped_from_both_families() {
        let left = |v4_count: u16, v6_count: u16| {
            let [v4, v6] = [v4_count, v6_count].map(|count| 0..count);
            let mut v4 = v4.map(|n| SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + u32::from(n)), 80)).collect();
            let mut v6 = v6.map(|n| SocketAddrV6::new([0xfd00, 0, 0, 0, 0, 0, 0, n].into(), 80, 0, 0)).collect();
            let left_out = bound(&mut v4, &mut v6);
            (v4.len(), v6.len(), left_out)
        };
        assert_eq!(left(4000, 0), (128, 0, 3872));
        assert_eq!(left(0, 129), (0, 128, 1));
        assert_eq!(left(4000, 4000), (64, 64, 7872));
        assert_eq!(left(4000, 3), (125, 3, 3875));
        assert_eq!(left(3, 4000), (3, 125, 3875));
        assert_eq!(left(64, 64), (64, 64, 0));
        assert_eq!(left(0, 0), (0, 0, 0));
    }

    #[test]
    fn the_addresses_of_a_record_share_its_weight() {
        let address = |last: u8| SocketAddr::from(([10, 0, 0, last], 80));
        let mut shares = BTreeMap::new();
        share(&mut shares, (10, 3), &[address(1)]);
        share(&mut shares, (10, 2), &[address(2), address(3)]);
        share(&mut shares, (10, 0), &[address(4), address(5)]);
        share(&mut shares, (10, 1), &[address(2)]);
        share(&mut shares, (20, 9), &[address(1), address(6)]);
        let shares_found: Vec<_> = shares.into_values().map(|share| (share.priority, share.weight)).collect();
        assert_eq!(shares_found, [(10, 3000), (10, 2000), (10, 1000), (10, 1), (10, 1), (20, 4500)]);
    }

    #[test]
    fn without_nameservers_in_resolv_conf_localhost_is_asked() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("resolv.conf");
        let (servers, options) = system(&file);
        assert_eq!((servers.name_servers()[0].ip, options.ndots), (Ipv4Addr::LOCALHOST.into(), 1));
        let text = "search shop.example\noptions ndots:3 timeout:7 attempts:4\n";
        std::fs::write(&file, text).expect("written");
        let (servers, options) = system(&file);
        assert_eq!((servers.name_servers()[0].ip, servers.search().len()), (Ipv4Addr::LOCALHOST.into(), 1));
        assert_eq!((options.ndots, options.timeout, options.attempts), (3, Duration::from_secs(7), 4));
        std::fs::write(&file, format!("{text}nameserver 10.0.0.2\n")).expect("written");
        assert_eq!(system(&file).0.name_servers()[0].ip, Ipv4Addr::new(10, 0, 0, 2));
    }
}
