//! A scripted DNS server (RFC 1035): records with a TTL, names that do not exist, and servers that fail, do not answer,
//! or have answers that are too long for UDP.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

const A: u16 = 1;
const SOA: u16 = 6;
const AAAA: u16 = 28;
const SRV: u16 = 33;

/// A server on its own port, over UDP and TCP. Unscripted names do not exist.
#[derive(Debug)]
pub struct Dns {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    _servers: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    names: HashMap<String, Entry>,
    /// By name and kind of record.
    asked: HashMap<(String, u16), usize>,
    asked_by_tcp: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    records: Vec<Record>,
    /// In seconds.
    ttl: u32,
    behaviour: DnsBehaviour,
}

#[derive(Debug, Clone)]
enum Record {
    Address(IpAddr),
    Service { priority: u16, weight: u16, port: u16, target: String },
}

/// How lookups of a name are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsBehaviour {
    Answers,
    /// SERVFAIL.
    Fails,
    /// SERVFAIL to AAAA only, as broken servers do.
    FailsForIpv6,
    Silent,
    /// Over UDP only that the answer is too long.
    Truncates,
}

impl Dns {
    pub async fn start() -> Self {
        let shared = Arc::<Mutex<Shared>>::default();
        let (udp, tcp) = sockets().await;
        let address = udp.local_addr().expect("a bound socket");
        let mut servers = JoinSet::new();
        servers.spawn(serve_udp(udp, Arc::clone(&shared)));
        servers.spawn(serve_tcp(tcp, Arc::clone(&shared)));
        Self { address, shared, _servers: servers }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the addresses of a name, with a TTL of zero.
    pub fn set<const N: usize>(&self, name: &str, addresses: [&str; N]) {
        let address = |text: &str| Record::Address(text.parse().expect("an address"));
        self.set_records(name, addresses.into_iter().map(address).collect());
    }

    /// Sets the SRV records of a name: priority, weight, port and host.
    pub fn set_services<const N: usize>(&self, name: &str, services: [(u16, u16, u16, &str); N]) {
        let service = |(priority, weight, port, target): (u16, u16, u16, &str)| Record::Service {
            priority,
            weight,
            port,
            target: target.to_owned(),
        };
        self.set_records(name, services.into_iter().map(service).collect());
    }

    fn set_records(&self, name: &str, records: Vec<Record>) {
        let mut shared = lock(&self.shared);
        let behaviour = shared.names.get(name).map_or(DnsBehaviour::Answers, |entry| entry.behaviour);
        shared.names.insert(name.to_owned(), Entry { records, ttl: 0, behaviour });
    }

    pub fn set_ttl(&self, name: &str, seconds: u32) {
        self.entry(name, |entry| entry.ttl = seconds);
    }

    pub fn set_behaviour(&self, name: &str, behaviour: DnsBehaviour) {
        self.entry(name, |entry| entry.behaviour = behaviour);
    }

    fn entry(&self, name: &str, change: impl FnOnce(&mut Entry)) {
        let new = || Entry { records: Vec::new(), ttl: 0, behaviour: DnsBehaviour::Answers };
        change(lock(&self.shared).names.entry(name.to_owned()).or_insert_with(new));
    }

    /// Removes a name.
    pub fn remove(&self, name: &str) {
        lock(&self.shared).names.remove(name);
    }

    /// How often the IPv4 addresses of a name were looked up.
    pub fn asked(&self, name: &str) -> usize {
        lock(&self.shared).asked.get(&(name.to_owned(), A)).copied().unwrap_or(0)
    }

    /// How often the SRV records of a name were looked up.
    pub fn services_asked(&self, name: &str) -> usize {
        lock(&self.shared).asked.get(&(name.to_owned(), SRV)).copied().unwrap_or(0)
    }

    pub fn asked_by_tcp(&self) -> usize {
        lock(&self.shared).asked_by_tcp
    }
}

async fn sockets() -> (UdpSocket, TcpListener) {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        // The TCP port may be taken.
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("a bound socket")).await {
            return (udp, tcp);
        }
    }
}

async fn serve_udp(socket: UdpSocket, shared: Arc<Mutex<Shared>>) {
    let mut question = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut question).await {
        if let Some(answer) = answer(&question[..length], &shared, false) {
            let _ = socket.send_to(&answer, from).await;
        }
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Mutex<Shared>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_connection(stream, Arc::clone(&shared)));
    }
}

/// Each message follows its length (RFC 1035 §4.2.2).
async fn serve_connection(mut stream: TcpStream, shared: Arc<Mutex<Shared>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut question = vec![0; length.into()];
        if stream.read_exact(&mut question).await.is_err() {
            return;
        }
        if let Some(answer) = answer(&question, &shared, true) {
            let length = u16::try_from(answer.len()).expect("a short answer");
            if stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await.is_err() {
                return;
            }
        }
    }
}

/// The answer to a message; none if it is not a query.
fn answer(message: &[u8], shared: &Mutex<Shared>, is_tcp: bool) -> Option<Vec<u8>> {
    const SERVER_FAILURE: u8 = 2;
    const NO_SUCH_NAME: u8 = 3;
    const TRUNCATED: u8 = 0b10;
    let (name, kind, end) = question(message)?;
    let mut shared = lock(shared);
    *shared.asked.entry((name.clone(), kind)).or_default() += 1;
    shared.asked_by_tcp += usize::from(is_tcp);
    let entry = shared.names.get(&name).cloned();
    drop(shared);
    let (behaviour, ttl) = entry.as_ref().map_or((DnsBehaviour::Answers, 0), |entry| (entry.behaviour, entry.ttl));
    let records: Vec<_> =
        entry.iter().flat_map(|entry| &entry.records).filter(|record| record.kind() == kind).collect();
    let (code, flags, records) = match behaviour {
        DnsBehaviour::Silent => return None,
        DnsBehaviour::Fails => (SERVER_FAILURE, 0, vec![]),
        DnsBehaviour::FailsForIpv6 if kind == AAAA => (SERVER_FAILURE, 0, vec![]),
        DnsBehaviour::Truncates if !is_tcp => (0, TRUNCATED, vec![]),
        _ if entry.is_none() => (NO_SUCH_NAME, 0, vec![]),
        _ => (0, 0, records),
    };
    let is_negative = records.is_empty() && code != SERVER_FAILURE && flags == 0;
    // Response, recursion desired and available.
    let mut out = vec![message[0], message[1], 0b1000_0001 | flags, 0b1000_0000 | code, 0, 1];
    out.extend(u16::try_from(records.len()).expect("few records").to_be_bytes());
    out.extend([0, u8::from(is_negative), 0, 0]);
    out.extend(&message[12..end]);
    for record in records {
        // The name is that of the question, at byte 12.
        write_record(&mut out, &[0xc0, 12], kind, ttl, &record.data());
    }
    if is_negative {
        // The authority is the root, and the answer holds for a second (RFC 2308 §3).
        let numbers = [1_u32, 1, 1, 1, 1].map(u32::to_be_bytes).concat();
        write_record(&mut out, &[0], SOA, 1, &[&[0, 0][..], &numbers].concat());
    }
    Some(out)
}

fn write_record(out: &mut Vec<u8>, name: &[u8], kind: u16, ttl: u32, data: &[u8]) {
    out.extend(name);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    out.extend(ttl.to_be_bytes());
    out.extend(u16::try_from(data.len()).expect("a short record").to_be_bytes());
    out.extend(data);
}

/// The queried name, the record type, and the end of the question.
fn question(message: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let kind = message.get(at..at + 2)?;
    Some((labels.join("."), u16::from_be_bytes(kind.try_into().ok()?), at + 4))
}

impl Record {
    fn kind(&self) -> u16 {
        match self {
            Self::Address(IpAddr::V4(_)) => A,
            Self::Address(IpAddr::V6(_)) => AAAA,
            Self::Service { .. } => SRV,
        }
    }

    fn data(&self) -> Vec<u8> {
        match self {
            Self::Address(IpAddr::V4(address)) => address.octets().to_vec(),
            Self::Address(IpAddr::V6(address)) => address.octets().to_vec(),
            Self::Service { priority, weight, port, target } => {
                let mut data = [*priority, *weight, *port].map(u16::to_be_bytes).concat();
                for label in target.split('.').filter(|label| !label.is_empty()) {
                    data.push(u8::try_from(label.len()).expect("a short label"));
                    data.extend(label.as_bytes());
                }
                data.push(0);
                data
            }
        }
    }
}

/// Locks; a test that panicked elsewhere has failed already.
fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
