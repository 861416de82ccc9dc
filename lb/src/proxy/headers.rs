//! What a backend is told about the client. Fields by which a proxy speaks of the client (X-Forwarded-*, Forwarded) are
//! made anew; what came in counts only when it came from a network that the operator trusts.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

/// The other end of a connection: its address, and the same as text, since every request needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub address: IpAddr,
    text: String,
}

/// What a request says, and what is known, of where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub peer: &'a Peer,
    pub is_tls: bool,
    /// As the client named it, port and all.
    pub host: &'a str,
    /// The values that came in, several fields joined with commas.
    pub forwarded_for: Option<&'a str>,
    pub forwarded_proto: Option<&'a str>,
    pub forwarded_host: Option<&'a str>,
    pub forwarded: Option<&'a str>,
}

/// What a backend is told about the client. Each field is written by its method.
#[derive(Debug, Clone, Copy)]
pub struct Forwarding<'a> {
    /// The client: the last address that nobody trusted vouches for.
    pub client: IpAddr,
    pub proto: &'static str,
    pub host: &'a str,
    origin: Origin<'a>,
}

impl<'a> Forwarding<'a> {
    pub fn new(origin: Origin<'a>, trusted: &[IpNet]) -> Self {
        let is_trusted = |address: IpAddr| trusted.iter().any(|network| network.contains(&address));
        let peer = origin.peer.address;
        // A stranger's claims are as good as none.
        let origin = if is_trusted(peer) { origin } else { origin.without_claims() };
        let proto = match origin.forwarded_proto {
            Some(proto) if proto.eq_ignore_ascii_case("https") => "https",
            Some(proto) if proto.eq_ignore_ascii_case("http") => "http",
            _ => origin.scheme(),
        };
        let client = client(origin.forwarded_for.unwrap_or_default(), peer, is_trusted);
        Self { client, proto, host: origin.forwarded_host.unwrap_or(origin.host), origin }
    }

    /// Writes the value of `X-Forwarded-For`: the chain so far and the peer.
    pub fn write_forwarded_for(&self, out: &mut impl Write) -> fmt::Result {
        self.write_chain(self.origin.forwarded_for, out)?;
        out.write_str(&self.origin.peer.text)
    }

    /// Writes the client's address.
    pub fn write_client(&self, out: &mut impl Write) -> fmt::Result {
        if self.client == self.origin.peer.address {
            return out.write_str(&self.origin.peer.text);
        }
        write!(out, "{}", self.client)
    }

    /// Writes the value of `Forwarded` (RFC 7239): the elements so far and one for this hop.
    pub fn write_forwarded(&self, out: &mut impl Write) -> fmt::Result {
        self.write_chain(self.origin.forwarded, out)?;
        match self.origin.peer.address {
            IpAddr::V4(_) => write!(out, "for={}", self.origin.peer.text)?,
            // RFC 7239, 6: an IPv6 address stands in brackets and quotes.
            IpAddr::V6(_) => write!(out, "for=\"[{}]\"", self.origin.peer.text)?,
        }
        out.write_str(";host=")?;
        write_quoted(self.origin.host, out)?;
        out.write_str(";proto=")?;
        out.write_str(self.origin.scheme())
    }

    fn write_chain(&self, chain: Option<&str>, out: &mut impl Write) -> fmt::Result {
        match chain {
            Some(chain) if !chain.is_empty() => {
                out.write_str(chain)?;
                out.write_str(", ")
            }
            _ => Ok(()),
        }
    }
}

impl Peer {
    pub fn new(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, text: address.to_string() }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl Origin<'_> {
    fn without_claims(self) -> Self {
        Self { forwarded_for: None, forwarded_proto: None, forwarded_host: None, forwarded: None, ..self }
    }

    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}

/// The last address of the chain, read from our end, that is not a trusted proxy's.
fn client(chain: &str, peer: IpAddr, is_trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    for element in chain.rsplit(',') {
        if !is_trusted(client) {
            break;
        }
        match address(element.trim()) {
            Some(address) => client = address,
            None => break,
        }
    }
    client
}

/// An address as proxies write it: plain, with a port, or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let plain = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = plain.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()));
    address.map(|a: IpAddr| a.to_canonical())
}

/// Writes a token or quoted string (RFC 9110, 5.6.4).
fn write_quoted(text: &str, out: &mut impl Write) -> fmt::Result {
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if !text.is_empty() && text.bytes().all(is_token) {
        return out.write_str(text);
    }
    out.write_char('"')?;
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.write_char('\\')?;
        }
        out.write_char(c)?;
    }
    out.write_char('"')
}

/// A host without its port and its letters as they came.
pub fn without_port(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or(host),
    }
}

/// Writes the client's request id when it is one that a log can bear, else a new one of 128 random bits.
pub fn write_request_id(incoming: Option<&[u8]>, out: &mut impl Write) -> fmt::Result {
    let is_bearable = |id: &&[u8]| {
        (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b))
    };
    match incoming.filter(is_bearable).and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => out.write_str(id),
        None => write!(out, "{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn origin(peer: &str) -> Origin<'static> {
        Origin {
            peer: Box::leak(Box::new(Peer::new(ip(peer)))),
            is_tls: false,
            host: "a.example:8888",
            forwarded_for: Some("203.0.113.7, 10.0.0.9"),
            forwarded_proto: Some("https"),
            forwarded_host: Some("public.example"),
            forwarded: Some("for=203.0.113.7"),
        }
    }

    fn forwarded_for(forwarding: &Forwarding<'_>) -> String {
        let mut text = String::new();
        forwarding.write_forwarded_for(&mut text).unwrap();
        text
    }

    fn forwarded(forwarding: &Forwarding<'_>) -> String {
        let mut text = String::new();
        forwarding.write_forwarded(&mut text).unwrap();
        text
    }

    fn trusted() -> Vec<IpNet> {
        vec!["10.0.0.0/8".parse().expect("a network")]
    }

    #[test]
    fn a_strangers_claims_are_forgotten() {
        let forwarding = Forwarding::new(origin("192.0.2.1"), &trusted());
        assert_eq!(forwarding.client, ip("192.0.2.1"));
        assert_eq!(forwarded_for(&forwarding), "192.0.2.1");
        assert_eq!(forwarding.proto, "http");
        assert_eq!(forwarding.host, "a.example:8888");
        assert_eq!(forwarded(&forwarding), "for=192.0.2.1;host=\"a.example:8888\";proto=http");
    }

    #[test]
    fn a_trusted_proxys_claims_are_kept_and_continued() {
        let forwarding = Forwarding::new(origin("10.0.0.1"), &trusted());
        assert_eq!(forwarding.client, ip("203.0.113.7"));
        assert_eq!(forwarded_for(&forwarding), "203.0.113.7, 10.0.0.9, 10.0.0.1");
        assert_eq!(forwarding.proto, "https");
        assert_eq!(forwarding.host, "public.example");
        assert_eq!(forwarded(&forwarding), "for=203.0.113.7, for=10.0.0.1;host=\"a.example:8888\";proto=http");
    }

    #[test]
    fn the_client_is_the_last_address_nobody_trusted_vouches_for() {
        for (chain, expected) in [
            ("", "10.0.0.1"),
            ("198.51.100.1", "198.51.100.1"),
            ("1.1.1.1, 198.51.100.1", "198.51.100.1"),
            ("198.51.100.1, 10.9.9.9", "198.51.100.1"),
            ("10.1.1.1", "10.1.1.1"),
            ("198.51.100.1, nonsense", "10.0.0.1"),
            ("198.51.100.1:4711", "198.51.100.1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:198.51.100.1", "198.51.100.1"),
        ] {
            let origin = Origin { forwarded_for: Some(chain), ..origin("10.0.0.1") };
            assert_eq!(Forwarding::new(origin, &trusted()).client, ip(expected), "{chain}");
        }
    }

    #[test]
    fn ipv6_is_written_as_rfc_7239_wants_it() {
        let forwarding = Forwarding::new(origin("2001:db8::1"), &[]);
        assert!(forwarded(&forwarding).starts_with("for=\"[2001:db8::1]\";"));
    }

    #[test]
    fn ports_are_cut_off() {
        for (host, expected) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")] {
            assert_eq!(without_port(host), expected);
        }
    }

    fn request_id(incoming: Option<&[u8]>) -> String {
        let mut id = String::new();
        write_request_id(incoming, &mut id).unwrap();
        id
    }

    #[test]
    fn request_ids_are_kept_when_harmless_and_made_otherwise() {
        assert_eq!(request_id(Some(b"abc-123")), "abc-123");
        let long = [b'a'; 129];
        for bad in [None, Some(&b""[..]), Some(b"a b"), Some(b"a\"b"), Some(b"\xff"), Some(&long)] {
            let id = request_id(bad);
            assert_eq!(id.len(), 32, "{id}");
        }
        assert_ne!(request_id(None), request_id(None));
    }
}
