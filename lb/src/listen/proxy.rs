//! The PROXY protocol header, by which a load balancer in front of us names the client of each connection: versions 1
//! and 2 (`doc/proxy-protocol.txt` of HAProxy, §2.1 and §2.2). Peers in the listener's configured networks must send
//! it, and it is read from no other peer, so that no client can pretend to be another.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::io::AsyncReadExt;

use crate::backend::repeats::RepeatedFailures;
use crate::config::ProxySenders;
use crate::dial::proxy::{LOCAL, PROXY, SIGNATURE, TCP4, TCP6};
use crate::exchange::headers::PeerAddress;
use crate::http::Engine;
use crate::http::io::Io;
use crate::metrics::Metrics;

/// The part of a version 2 header before the addresses.
const FIXED_BYTES: usize = 16;
const MAX_V1_BYTES: usize = 107;
/// The longest version 2 header that is accepted: the longest addresses, two of Unix sockets, and additional fields.
const MAX_V2_BYTES: usize = FIXED_BYTES + 216 + 4096;
/// How much time each sender has at least, even if others wait for its permit.
const MIN_HEADER_TIME: Duration = Duration::from_secs(1);

/// Which peers of a listener must send the header.
pub(super) struct ProxyHeaderPolicy {
    senders: ArcSwapOption<ProxySenders>,
    listener: String,
    metrics: Arc<Metrics>,
    repeats: RepeatedFailures,
}

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    bytes: usize,
    /// `None`: the connection is the sender's own, or the sender does not know its client.
    client: Option<SocketAddr>,
}

/// Why a connection is closed.
#[derive(Debug, thiserror::Error)]
enum ProxyHeaderError {
    #[error("it begins with something else")]
    Missing,
    #[error("the header is malformed")]
    Malformed,
    #[error("the header is longer than {MAX_V2_BYTES} bytes")]
    TooLarge,
    #[error("it took too long to send the header")]
    Timeout,
    #[error("it had to make room before the header had come")]
    Shed,
    #[error("it closed the connection before the header had come")]
    Closed,
}

impl ProxyHeaderPolicy {
    pub(super) fn new(senders: Option<&ProxySenders>, listener: &str, metrics: &Arc<Metrics>) -> Self {
        let expected = Self {
            senders: ArcSwapOption::empty(),
            listener: listener.to_owned(),
            metrics: Arc::clone(metrics),
            repeats: RepeatedFailures::default(),
        };
        expected.set(senders);
        expected
    }

    /// Applies to the next connections.
    pub(super) fn set(&self, senders: Option<&ProxySenders>) {
        self.metrics.expect_proxy_protocol(&self.listener);
        self.senders.store(senders.cloned().map(Arc::new));
    }

    pub(super) fn of(&self, peer: PeerAddress) -> bool {
        self.senders.load().as_ref().is_some_and(|senders| senders.from.contains(peer.ip()))
    }

    /// Reads the header, and nothing after it. Returns the client's address; `None`: close the connection.
    pub(super) async fn read(&self, engine: &Engine, io: &mut Io, peer: PeerAddress) -> Option<PeerAddress> {
        let shed = async {
            tokio::time::sleep(MIN_HEADER_TIME).await;
            engine.sheds_handshake().await;
        };
        let header = tokio::select! {
            biased;
            header = tokio::time::timeout(engine.header_timeout(), read(io)) => header.unwrap_or(Err(ProxyHeaderError::Timeout)),
            () = shed => Err(ProxyHeaderError::Shed),
        };
        match header {
            Ok(client) => Some(client.map_or(peer, PeerAddress::Ip)),
            Err(failed) => {
                self.failed(&failed, peer);
                None
            }
        }
    }

    fn failed(&self, failed: &ProxyHeaderError, peer: PeerAddress) {
        let (reason, now) = (failed.reason(), Instant::now());
        self.metrics.proxy_protocol_failed(&self.listener, reason);
        for more in self.repeats.take(now) {
            let (listener, seconds) = (&self.listener, more.within.as_secs());
            tracing::warn!(
                reason = more.word,
                "listener {listener}: {} more connections were cut for lack of a PROXY header within {seconds} seconds",
                more.count
            );
        }
        // A peer that only checks whether the port is open is not logged.
        if !matches!(failed, ProxyHeaderError::Closed) && self.repeats.note(reason, now) {
            tracing::warn!(
                %peer,
                reason,
                "listener {}: a connection is cut, which proxy_protocol demands a PROXY header of: {failed}",
                self.listener
            );
        } else {
            tracing::debug!(%peer, reason, "listener {}: no PROXY header: {failed}", self.listener);
        }
    }
}

async fn read(io: &mut Io) -> Result<Option<SocketAddr>, ProxyHeaderError> {
    let mut buffer = vec![0; MAX_V2_BYTES];
    let mut taken = 0;
    loop {
        // The bytes after the header belong to TLS or HTTP, and must stay unread.
        let seen = taken + io.peek(&mut buffer[taken..]).await.map_err(|_| ProxyHeaderError::Closed)?;
        if seen == taken {
            return Err(ProxyHeaderError::Closed);
        }
        let header = parse(&buffer[..seen])?;
        let end = header.map_or(seen, |header| header.bytes);
        // These bytes have arrived, so this does not wait.
        io.read_exact(&mut buffer[taken..end]).await.map_err(|_| ProxyHeaderError::Closed)?;
        if let Some(header) = header {
            return Ok(header.client);
        }
        taken = end;
    }
}

/// Parses the header at the start of `bytes`; `None`: more bytes are needed, never more than [`MAX_V2_BYTES`].
fn parse(bytes: &[u8]) -> Result<Option<Header>, ProxyHeaderError> {
    const V1: &[u8] = b"PROXY ";
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(byte, expected)| byte == expected);
    match () {
        () if begins(V1) => parse_v1(bytes),
        () if begins(SIGNATURE) => parse_v2(bytes),
        () => Err(ProxyHeaderError::Missing),
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, ProxyHeaderError> {
    let bytes = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_V1_BYTES { Ok(None) } else { Err(ProxyHeaderError::Malformed) };
    };
    let line = bytes[..end].strip_suffix(b"\r").and_then(|line| std::str::from_utf8(line).ok());
    let words: Vec<_> = line.ok_or(ProxyHeaderError::Malformed)?.split(' ').collect();
    let client = match words[..] {
        ["PROXY", "UNKNOWN", ..] => None,
        ["PROXY", family, from, to, from_port, to_port] => {
            let address = |text: &str| match family {
                "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::from),
                "TCP6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::from),
                _ => None,
            };
            let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
                true => text.parse::<u16>().ok(),
                false => None,
            };
            let client = (address(from), port(from_port), address(to), port(to_port));
            let (Some(from), Some(from_port), Some(_), Some(_)) = client else {
                return Err(ProxyHeaderError::Malformed);
            };
            Some(SocketAddr::new(from, from_port))
        }
        _ => return Err(ProxyHeaderError::Malformed),
    };
    Ok(Some(Header { bytes: end + 1, client }))
}

fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, ProxyHeaderError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let bytes = FIXED_BYTES + length;
    if command != LOCAL && command != PROXY {
        return Err(ProxyHeaderError::Malformed);
    }
    if bytes > MAX_V2_BYTES {
        return Err(ProxyHeaderError::TooLarge);
    }
    let Some(rest) = rest.get(..length) else { return Ok(None) };
    let port = |at: usize| rest.get(at..at + 2).map(|port| u16::from_be_bytes([port[0], port[1]]));
    let client = match (command, family) {
        (LOCAL, _) => None,
        // A stream over IPv4 or IPv6: both addresses, then both ports.
        (_, TCP4) => {
            let from =
                rest.first_chunk::<4>().zip(port(8)).filter(|_| length >= 12).ok_or(ProxyHeaderError::Malformed)?;
            Some(SocketAddr::new(IpAddr::from(*from.0), from.1))
        }
        (_, TCP6) => {
            let from =
                rest.first_chunk::<16>().zip(port(32)).filter(|_| length >= 36).ok_or(ProxyHeaderError::Malformed)?;
            Some(SocketAddr::new(IpAddr::from(*from.0), from.1))
        }
        // Unspecified, UDP, or a Unix socket: like HAProxy, keep the connection's own address.
        (_, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => None,
        _ => return Err(ProxyHeaderError::Malformed),
    };
    Ok(Some(Header { bytes, client }))
}

impl ProxyHeaderError {
    /// Its label in metrics and logs.
    fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLarge => "too-large",
            Self::Timeout => "timeout",
            Self::Shed => "shed",
            Self::Closed => "closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::PROXY_PROTOCOL_FAILURES;

    /// Parses the bytes split in every position, and byte by byte. The result must be the same each time.
    fn parsed(bytes: &[u8]) -> Result<(usize, Option<String>), &'static str> {
        let stats = |parsed: Result<Option<Header>, ProxyHeaderError>| match parsed {
            Ok(Some(header)) => Ok((header.bytes, header.client.map(|client| client.to_string()))),
            Ok(None) => Err("incomplete"),
            Err(failed) => Err(failed.reason()),
        };
        let whole = stats(parse(bytes));
        for end in 0..bytes.len() {
            let part = stats(parse(&bytes[..end]));
            assert!(part == Err("incomplete") || part == whole, "{end} bytes: {part:?} instead of {whole:?}");
        }
        whole
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[command, family][..], &length, rest].concat()
    }

    #[test]
    fn version_1_headers_are_parsed_as_specified() {
        let client = |address: &str| Some(address.to_owned());
        let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n", Ok(client("192.0.2.7:56324"))),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", Ok(client("[2001:db8::7]:1"))),
            ("PROXY UNKNOWN\r\n", Ok(None)),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Ok(None)),
            (&*longest, Ok(None)),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\n", Err("malformed")),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324\r\n", Err("malformed")),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 56324 443 1\r\n", Err("malformed")),
            ("PROXY TCP4  192.0.2.7 10.0.0.1 56324 443\r\n", Err("malformed")),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 65536 443\r\n", Err("malformed")),
            ("PROXY TCP4 192.0.2.7 10.0.0.1 +1 443\r\n", Err("malformed")),
            ("PROXY TCP4 192.0.2.7 10.0.0.1  443\r\n", Err("malformed")),
            ("PROXY TCP4 192.0.2 10.0.0.1 1 443\r\n", Err("malformed")),
            ("PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", Err("malformed")),
            ("PROXY TCP6 192.0.2.7 10.0.0.1 1 443\r\n", Err("malformed")),
            ("PROXY UDP4 192.0.2.7 10.0.0.1 1 443\r\n", Err("malformed")),
            ("PROXY \r\n", Err("malformed")),
            ("PROXY UNKNOWNS\r\n", Err("malformed")),
            ("PROXI TCP4\r\n", Err("missing")),
            ("GET / HTTP/1.1\r\n", Err("missing")),
            ("POST / HTTP/1.1\r\n", Err("missing")),
            ("\r\nPROXY UNKNOWN\r\n", Err("missing")),
        ] {
            let expected = expected.map(|client| (line.len(), client));
            assert_eq!(parsed(line.as_bytes()), expected, "{line:?}");
            if let Ok((bytes, _)) = expected {
                let more = [line.as_bytes(), b"GET / HTTP/1.1\r\n\r\n"].concat();
                assert_eq!(parse(&more).ok().flatten().map(|header| header.bytes), Some(bytes));
            }
        }
        assert_eq!(longest.len(), MAX_V1_BYTES);
        let too_long = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
        assert_eq!(parsed(too_long.as_bytes()), Err("malformed"));
    }

    #[test]
    fn version_2_headers_are_parsed_as_specified() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0xdc, 4, 1, 0xbb];
        let mut six = [0; 36];
        (six[..4]).copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
        (six[15], six[33]) = (7, 1);
        let with_more = |more: usize| [&four[..], &vec![4; more]].concat();
        let client = |address: &str| Some(address.to_owned());
        for (command, family, rest, expected) in [
            (0x21, 0x11, &four[..], Ok(client("192.0.2.7:56324"))),
            (0x21, 0x21, &six, Ok(client("[2001:db8::7]:1"))),
            (0x21, 0x11, &with_more(4096), Ok(client("192.0.2.7:56324"))),
            (0x20, 0x00, &[], Ok(None)),
            (0x20, 0x11, &four, Ok(None)),
            (0x20, 0xff, &[], Ok(None)),
            (0x21, 0x00, &[], Ok(None)),
            (0x21, 0x12, &four, Ok(None)),
            (0x21, 0x31, &[0; 216], Ok(None)),
            (0x21, 0x11, &four[..11], Err("malformed")),
            (0x21, 0x21, &four, Err("malformed")),
            (0x21, 0x41, &six, Err("malformed")),
            (0x22, 0x11, &four, Err("malformed")),
            (0x11, 0x11, &four, Err("malformed")),
            (0x21, 0x11, &with_more(4301), Err("too-large")),
            (0x21, 0x11, &[0; 65535], Err("too-large")),
        ] {
            let header = v2(command, family, rest);
            let expected = expected.map(|client| (header.len(), client));
            assert_eq!(parsed(&header), expected, "{command:#x} {family:#x} {}", rest.len());
        }
        let mut other = v2(0x21, 0x11, &four);
        other[11] = b'\r';
        assert_eq!(parsed(&other), Err("missing"));
    }

    #[test]
    fn every_reason_is_counted_from_the_start() {
        for failed in [
            ProxyHeaderError::Missing,
            ProxyHeaderError::Malformed,
            ProxyHeaderError::TooLarge,
            ProxyHeaderError::Timeout,
            ProxyHeaderError::Shed,
            ProxyHeaderError::Closed,
        ] {
            assert!(PROXY_PROTOCOL_FAILURES.contains(&failed.reason()), "{failed}");
        }
    }
}
