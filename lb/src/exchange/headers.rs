//! The fields that tell a backend about the client: X-Forwarded-* and Forwarded. They are always generated. Values in
//! the request are used only if it comes from a trusted proxy.

use std::borrow::Cow;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::clock;
use crate::config::TrustedPeers;
use crate::config::backend::UNIX;
use crate::message::ascii::is_token;
use crate::message::authority::without_port;

/// The remote address of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    Ip(SocketAddr),
    /// A Unix socket, whose peer has no address.
    Unix,
}

/// The remote end of a connection. The address is also kept as text, because every request needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `None` for a Unix socket.
    pub address: Option<IpAddr>,
    /// 0 if there is none.
    pub port: u16,
    /// The local address, where the connection cannot be asked for it later.
    pub local: Option<SocketAddr>,
    text: String,
    /// It sent plain HTTP to a TLS listener.
    pub lacks_tls: bool,
    /// `None` without TLS.
    pub tls: Option<Box<TlsInfo>>,
}

/// The TLS parameters of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsInfo {
    /// `TLSv1.3` or the like.
    pub protocol: &'static str,
    /// By OpenSSL's name.
    pub cipher: &'static str,
    /// The server name that the client sent (SNI).
    pub server_name: Option<Box<str>>,
    pub is_resumed: bool,
    pub client: Option<ClientCertificate>,
}

/// A verified client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientCertificate {
    /// RFC 2253.
    pub subject: Box<str>,
    pub issuer: Box<str>,
    /// SHA-1, as nginx has it, and SHA-256, in hexadecimal digits.
    pub sha1: Box<str>,
    pub sha256: Box<str>,
    /// The field lines that tell a backend about it.
    pub lines: Box<str>,
}

/// The connection of a request, and what a trusted proxy claims about the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestOrigin<'a> {
    pub peer: &'a Peer,
    pub is_tls: bool,
    /// The request's host, including the port.
    pub host: &'a str,
    /// [`ProxyClaims::None`] unless the peer is trusted.
    pub claims: &'a ProxyClaims<'a>,
}

/// What a proxy claims about its client, in one family of fields. The other family is ignored: a proxy that does not
/// know it forwards whatever its client has sent.
#[derive(Debug, Clone, Default)]
pub(crate) enum ProxyClaims<'a> {
    #[default]
    None,
    XForwarded(XForwarded<'a>),
    /// `Forwarded` (RFC 7239).
    Forwarded(Cow<'a, [u8]>),
}

/// The X-Forwarded-* fields. Several of one name are joined with commas; missing ones are empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct XForwarded<'a> {
    pub addresses: Cow<'a, [u8]>,
    pub proto: Cow<'a, [u8]>,
    pub host: Cow<'a, [u8]>,
    pub port: Cow<'a, [u8]>,
    pub prefix: Cow<'a, [u8]>,
}

/// The client's properties, from the connection or from trusted proxies. They are used for the fields for the backend,
/// ip-hash, logs and sticky cookies. Routing uses the request as received.
///
/// Claims are lists to which every proxy appends, so they are read from the right: the client is the last address that
/// is not a trusted proxy's. Its scheme, host, port and prefix are taken from the proxy that named its address.
/// Malformed values are ignored.
#[derive(Debug, Clone)]
pub(crate) struct Forwarding<'a> {
    /// `None` if it came through a Unix socket and no proxy names an address.
    pub client: Option<IpAddr>,
    /// `http` or `https`.
    pub proto: &'static str,
    /// With the port, if there is one.
    pub host: &'a str,
    /// Decimal digits.
    pub port: &'a str,
    pub prefix: Option<&'a str>,
    /// The addresses that were accepted: the client, then the proxies after it, without the peer.
    chain: Vec<IpAddr>,
    origin: RequestOrigin<'a>,
}

/// The properties of one client in the claims.
#[derive(Debug, Clone, Copy, Default)]
struct ClientClaim<'a> {
    proto: Option<&'static str>,
    host: Option<&'a str>,
    port: Option<&'a str>,
    prefix: Option<&'a str>,
}

impl<'a> Forwarding<'a> {
    pub(crate) fn new(origin: RequestOrigin<'a>, trusted: &TrustedPeers) -> Self {
        let mut chain = Vec::new();
        let peer = origin.peer.address;
        let is_believed = trusted.contains(peer);
        let claim = match origin.claims {
            ProxyClaims::XForwarded(claims) if is_believed => claims.read(trusted, peer, &mut chain),
            ProxyClaims::Forwarded(list) if is_believed => read_forwarded(list, trusted, peer, &mut chain),
            _ => ClientClaim::default(),
        };
        chain.reverse();
        let proto = claim.proto.unwrap_or(origin.scheme());
        let host = claim.host.unwrap_or(origin.host);
        let default_port = if proto == "https" { "443" } else { "80" };
        let port = claim.port.or(port_of(host)).unwrap_or(default_port);
        let client = chain.first().copied().or(peer);
        Self { client, proto, host, port, prefix: claim.prefix, chain, origin }
    }

    /// Writes the value of `X-Forwarded-For`: the chain and the peer, if it has an address. May be empty.
    pub(crate) fn write_forwarded_for(&self, out: &mut impl Write) -> fmt::Result {
        let mut comma = "";
        match self.origin.claims {
            ProxyClaims::XForwarded(claims) if self.is_told() => {
                for element in claims.addresses.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    let element = match std::str::from_utf8(element) {
                        Ok("") => continue,
                        Ok(element) if element.bytes().all(|byte| byte.is_ascii_graphic()) => element,
                        _ => "unknown",
                    };
                    write_all(&[comma, element], out)?;
                    comma = ", ";
                }
            }
            _ => {
                for address in &self.chain {
                    write!(out, "{comma}{address}")?;
                    comma = ", ";
                }
            }
        }
        match self.origin.peer.address {
            Some(_) => write_all(&[comma, &self.origin.peer.text], out),
            None => Ok(()),
        }
    }

    /// Writes the client's address, or `unix:`.
    pub(crate) fn write_client(&self, out: &mut impl Write) -> fmt::Result {
        match self.client {
            Some(client) if Some(client) != self.origin.peer.address => write!(out, "{client}"),
            _ => out.write_str(&self.origin.peer.text),
        }
    }

    /// Writes the value of `Forwarded` (RFC 7239): the accepted elements and one for this hop.
    pub(crate) fn write_forwarded(&self, out: &mut impl Write) -> fmt::Result {
        let peer = self.origin.peer.address;
        if let ProxyClaims::Forwarded(list) = self.origin.claims
            && let Some(list) = whole_list(list).filter(|_| self.is_told())
        {
            write!(out, "{list}, ")?;
            write_node(peer, out)?;
            return write_host_and_proto(self.origin.host, self.origin.scheme(), out);
        }
        match self.chain.split_first() {
            None => {
                // The common case: the peer's address exists as text already.
                match peer {
                    Some(IpAddr::V4(_)) => write_all(&["for=", &self.origin.peer.text], out)?,
                    Some(IpAddr::V6(_)) => write_all(&["for=\"[", &self.origin.peer.text, "]\""], out)?,
                    None => write_node(None, out)?,
                }
                write_host_and_proto(self.host, self.proto, out)
            }
            Some((client, proxies)) => {
                write_node(Some(*client), out)?;
                write_host_and_proto(self.host, self.proto, out)?;
                for proxy in proxies.iter().copied().map(Some).chain([peer]) {
                    out.write_str(", ")?;
                    write_node(proxy, out)?;
                }
                Ok(())
            }
        }
    }

    /// Whether the peer is a trusted proxy that names a client.
    fn is_told(&self) -> bool {
        !self.chain.is_empty()
    }
}

impl<'a> XForwarded<'a> {
    /// Appends the addresses of the claims to `chain`, nearest first. Returns the client's properties.
    fn read(&'a self, trusted: &TrustedPeers, peer: Option<IpAddr>, chain: &mut Vec<IpAddr>) -> ClientClaim<'a> {
        let mut client = peer;
        let mut at = None;
        for (position, element) in elements_from_right(&self.addresses, b',').enumerate() {
            if !trusted.contains(client) {
                break;
            }
            at = Some(position);
            let Some(address) = address(element) else { break };
            client = Some(address);
            chain.push(address);
        }
        // A proxy that overwrites a field leaves one value for all hops before it.
        let own_element = |list: &'a [u8]| elements_from_right(list, b',').take(at.unwrap_or(0) + 1).last();
        ClientClaim {
            proto: own_element(&self.proto).and_then(scheme),
            host: own_element(&self.host).and_then(host),
            port: own_element(&self.port).and_then(port),
            prefix: own_element(&self.prefix).and_then(prefix),
        }
    }
}

/// As [`XForwarded::read`], from a list of RFC 7239.
fn read_forwarded<'a>(
    list: &'a [u8],
    trusted: &TrustedPeers,
    peer: Option<IpAddr>,
    chain: &mut Vec<IpAddr>,
) -> ClientClaim<'a> {
    let mut client = peer;
    let mut claim = ClientClaim::default();
    for element in elements_from_right(list, b',') {
        if !trusted.contains(client) {
            break;
        }
        claim = ClientClaim::default();
        let mut node = None;
        for pair in elements_from_right(element, b';') {
            let Some(equals) = pair.iter().position(|&byte| byte == b'=') else { continue };
            let (name, value) = (pair[..equals].trim_ascii(), unquoted(pair[equals + 1..].trim_ascii()));
            if name.eq_ignore_ascii_case(b"for") {
                node = address(value);
            } else if name.eq_ignore_ascii_case(b"proto") {
                claim.proto = scheme(value);
            } else if name.eq_ignore_ascii_case(b"host") {
                claim.host = host(value);
            }
        }
        // `unknown`, or an identifier that hides the address (RFC 7239 §6.2, §6.3).
        let Some(address) = node else { break };
        client = Some(address);
        chain.push(address);
    }
    claim
}

impl PeerAddress {
    pub(crate) fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip()),
            Self::Unix => None,
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str(UNIX),
        }
    }
}

impl Peer {
    pub(crate) fn new(address: PeerAddress) -> Self {
        let (ip, port) = match address {
            PeerAddress::Ip(address) => (Some(address.ip().to_canonical()), address.port()),
            PeerAddress::Unix => (None, 0),
        };
        let text = ip.map_or_else(|| UNIX.to_owned(), |ip| ip.to_string());
        Self { address: ip, port, local: None, text, lacks_tls: false, tls: None }
    }

    /// The peer of a client that sent plain HTTP to a TLS listener.
    pub(crate) fn without_tls(address: PeerAddress) -> Self {
        Self { lacks_tls: true, ..Self::new(address) }
    }

    pub(crate) fn with_tls(address: PeerAddress, tls: TlsInfo, local: Option<SocketAddr>) -> Self {
        Self { tls: Some(Box::new(tls)), local, ..Self::new(address) }
    }

    pub(crate) fn client_certificate(&self) -> Option<&ClientCertificate> {
        self.tls.as_ref()?.client.as_ref()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// A peer whose port is unknown.
impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        Self::new(PeerAddress::Ip(SocketAddr::new(address, 0)))
    }
}

impl RequestOrigin<'_> {
    fn scheme(&self) -> &'static str {
        if self.is_tls { "https" } else { "http" }
    }
}

/// The elements of a list from its right end, empty ones left out. Separators within quotes separate nothing. Reading
/// from the right, a quote that a client has not closed cannot swallow what a proxy appended.
fn elements_from_right(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list);
    let elements = std::iter::from_fn(move || {
        let list = rest?;
        let mut is_quoted = false;
        let found = list.iter().rposition(|&byte| {
            is_quoted ^= byte == b'"';
            byte == separator && !is_quoted
        });
        let (before, element) = found.map_or((None, list), |at| (Some(&list[..at]), &list[at + 1..]));
        rest = before;
        Some(element.trim_ascii())
    });
    elements.filter(|element| !element.is_empty())
}

fn unquoted(value: &[u8]) -> &[u8] {
    value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)
}

/// A list that another element may follow: ASCII, its quotes closed.
fn whole_list(list: &[u8]) -> Option<&str> {
    let list = std::str::from_utf8(list).ok().filter(|list| list.bytes().all(|b| matches!(b, b' '..=b'~')))?;
    let quotes = list.bytes().filter(|&byte| byte == b'"').count();
    (quotes % 2 == 0 && !list.contains('\\')).then_some(list)
}

/// An address as proxies write it: plain, with a port, or in brackets, and sometimes in quotes.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(unquoted(text)).ok()?;
    let plain = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    let address = plain.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()));
    address.map(|a: IpAddr| a.to_canonical())
}

/// `http` or `https`; a WebSocket's scheme tells which of them carries it.
fn scheme(text: &[u8]) -> Option<&'static str> {
    let is = |scheme: &[u8]| text.eq_ignore_ascii_case(scheme);
    if is(b"https") || is(b"wss") {
        Some("https")
    } else if is(b"http") || is(b"ws") {
        Some("http")
    } else {
        None
    }
}

/// A name or address with an optional port (RFC 3986 §3.2.2).
fn host(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok()?;
    let name = without_port(text);
    let is_name = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~".contains(&b)),
    };
    let rest = &text[name.len()..];
    (is_name && (rest.is_empty() || rest == ":" || port_of(text).is_some())).then_some(text)
}

/// The port that a host names.
fn port_of(host: &str) -> Option<&str> {
    port(host[without_port(host).len()..].strip_prefix(':')?.as_bytes())
}

fn port(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    text.parse::<u16>().ok().filter(|port| *port > 0).map(|_| text)
}

/// A path that an application can put before its own.
fn prefix(text: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.starts_with('/') && !text.starts_with("//"))?;
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+;=:@".contains(&b)).then_some(text)
}

/// Writes `for=` with an address, or with what stands for one that there is none of (RFC 7239 §6.2). One of IPv6 stands
/// in brackets and quotes (§6).
fn write_node(address: Option<IpAddr>, out: &mut impl Write) -> fmt::Result {
    match address {
        Some(IpAddr::V4(address)) => write!(out, "for={address}"),
        Some(IpAddr::V6(address)) => write!(out, "for=\"[{address}]\""),
        None => out.write_str("for=unknown"),
    }
}

fn write_all(pieces: &[&str], out: &mut impl Write) -> fmt::Result {
    pieces.iter().try_for_each(|piece| out.write_str(piece))
}

fn write_host_and_proto(host: &str, proto: &str, out: &mut impl Write) -> fmt::Result {
    out.write_str(";host=")?;
    write_quoted(host, out)?;
    out.write_str(";proto=")?;
    out.write_str(proto)
}

/// Writes a token or quoted string (RFC 9110 §5.6.4).
fn write_quoted(text: &str, out: &mut impl Write) -> fmt::Result {
    if is_token(text.as_bytes()) {
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

/// Writes the client's request id when it is one that a log can bear, else a new one of 128 random bits.
pub(crate) fn write_request_id(incoming: Option<&[u8]>, out: &mut impl Write) -> fmt::Result {
    let is_bearable = |id: &&[u8]| {
        (1..=128).contains(&id.len()) && id.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b))
    };
    match incoming.filter(is_bearable).and_then(|id| std::str::from_utf8(id).ok()) {
        Some(id) => out.write_str(id),
        None => write_random_id(out),
    }
}

/// As 32 hexadecimal digits. The formatter of numbers takes five times as long.
fn write_random_id(out: &mut impl Write) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut id = [0; 32];
    for half in id.as_chunks_mut::<16>().0 {
        let mut random = clock::random();
        for digit in half.iter_mut().rev() {
            *digit = DIGITS[(random & 0xf) as usize];
            random >>= 4;
        }
    }
    out.write_str(str::from_utf8(&id).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    const HOST: &str = "a.example:8888";

    fn peer(address: &str) -> Peer {
        Peer::from(ip(address))
    }

    fn origin<'a>(peer: &'a Peer, claims: &'a ProxyClaims<'a>) -> RequestOrigin<'a> {
        RequestOrigin { peer, is_tls: false, host: HOST, claims }
    }

    fn x_forwarded<'a>(addresses: &'a [u8], proto: &'a str, host: &'a str) -> ProxyClaims<'a> {
        let of = |text: &'a str| Cow::Borrowed(text.as_bytes());
        ProxyClaims::XForwarded(XForwarded {
            addresses: addresses.into(),
            proto: of(proto),
            host: of(host),
            ..Default::default()
        })
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

    fn trusted() -> TrustedPeers {
        TrustedPeers { networks: vec!["10.0.0.0/8".parse().expect("a network")], has_unix: false }
    }

    #[test]
    fn unix_socket_peers_have_no_address_and_are_trusted_where_configured() {
        let peer = Peer::new(PeerAddress::Unix);
        assert_eq!(peer.as_str(), "unix:");
        let rfc7239 = ProxyClaims::Forwarded(b"for=203.0.113.7;proto=https;host=public.example"[..].into());
        for claims in [ProxyClaims::None, x_forwarded(b"203.0.113.7", "https", "public.example"), rfc7239] {
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            assert_eq!((forwarding.client, forwarding.proto), (None, "http"));
            assert_eq!(forwarded_for(&forwarding), "");
            assert_eq!(forwarded(&forwarding), "for=unknown;host=\"a.example:8888\";proto=http");
        }
        let trusted = TrustedPeers { has_unix: true, ..trusted() };
        let claims = x_forwarded(b"203.0.113.7, 10.0.0.9", "https", "public.example");
        let forwarding = Forwarding::new(origin(&peer, &claims), &trusted);
        assert_eq!((forwarding.client, forwarding.proto), (Some(ip("203.0.113.7")), "https"));
        assert_eq!(forwarded_for(&forwarding), "203.0.113.7, 10.0.0.9");
        assert_eq!(
            forwarded(&forwarding),
            "for=203.0.113.7;host=public.example;proto=https, for=10.0.0.9, for=unknown"
        );
        let claims = ProxyClaims::Forwarded(b"for=203.0.113.7;proto=https"[..].into());
        let forwarding = Forwarding::new(origin(&peer, &claims), &trusted);
        assert_eq!(
            forwarded(&forwarding),
            "for=203.0.113.7;proto=https, for=unknown;host=\"a.example:8888\";proto=http"
        );
        assert_eq!(forwarded_for(&forwarding), "203.0.113.7");
    }

    #[test]
    fn claims_of_untrusted_peers_are_dropped() {
        for claims in [
            x_forwarded(b"203.0.113.7", "https", "public.example"),
            ProxyClaims::Forwarded(b"for=203.0.113.7;proto=https;host=public.example"[..].into()),
        ] {
            let peer = peer("192.0.2.1");
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            assert_eq!(forwarding.client, Some(ip("192.0.2.1")));
            assert_eq!(forwarded_for(&forwarding), "192.0.2.1");
            assert_eq!((forwarding.proto, forwarding.host, forwarding.port), ("http", HOST, "8888"));
            assert_eq!(forwarded(&forwarding), "for=192.0.2.1;host=\"a.example:8888\";proto=http");
        }
    }

    #[test]
    fn claims_of_trusted_proxies_are_extended_in_both_families() {
        let peer = peer("10.0.0.1");
        let claims = x_forwarded(b"203.0.113.7, 10.0.0.9", "https", "public.example");
        let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
        assert_eq!(forwarding.client, Some(ip("203.0.113.7")));
        assert_eq!(forwarded_for(&forwarding), "203.0.113.7, 10.0.0.9, 10.0.0.1");
        assert_eq!((forwarding.proto, forwarding.host, forwarding.port), ("https", "public.example", "443"));
        assert_eq!(
            forwarded(&forwarding),
            "for=203.0.113.7;host=public.example;proto=https, for=10.0.0.9, for=10.0.0.1"
        );
        let list = b"for=203.0.113.7;proto=https;host=\"public.example\", for=10.0.0.9";
        let claims = ProxyClaims::Forwarded(list[..].into());
        let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
        assert_eq!(forwarding.client, Some(ip("203.0.113.7")));
        assert_eq!(forwarded_for(&forwarding), "203.0.113.7, 10.0.0.9, 10.0.0.1");
        assert_eq!((forwarding.proto, forwarding.host, forwarding.port), ("https", "public.example", "443"));
        let own = "for=10.0.0.1;host=\"a.example:8888\";proto=http";
        assert_eq!(forwarded(&forwarding), format!("{}, {own}", String::from_utf8_lossy(list)));
    }

    #[test]
    fn the_client_is_the_rightmost_untrusted_address() {
        let peer = peer("10.0.0.1");
        for (chain, expected, passed) in [
            (&b""[..], "10.0.0.1", "10.0.0.1"),
            (b"198.51.100.1", "198.51.100.1", "198.51.100.1, 10.0.0.1"),
            (b"1.1.1.1, 198.51.100.1", "198.51.100.1", "1.1.1.1, 198.51.100.1, 10.0.0.1"),
            (b"198.51.100.1, 10.9.9.9", "198.51.100.1", "198.51.100.1, 10.9.9.9, 10.0.0.1"),
            (b"\xff, 198.51.100.1", "198.51.100.1", "unknown, 198.51.100.1, 10.0.0.1"),
            (b"a b, 198.51.100.1", "198.51.100.1", "unknown, 198.51.100.1, 10.0.0.1"),
            (b",198.51.100.1,, ", "198.51.100.1", "198.51.100.1, 10.0.0.1"),
            (b"10.1.1.1", "10.1.1.1", "10.1.1.1, 10.0.0.1"),
            (b"198.51.100.1, nonsense", "10.0.0.1", "10.0.0.1"),
            (b"198.51.100.1, \xff", "10.0.0.1", "10.0.0.1"),
            (b"198.51.100.1, unknown, 10.9.9.9", "10.9.9.9", "198.51.100.1, unknown, 10.9.9.9, 10.0.0.1"),
            (b"198.51.100.1:4711", "198.51.100.1", "198.51.100.1:4711, 10.0.0.1"),
            (b"[2001:db8::1]:80", "2001:db8::1", "[2001:db8::1]:80, 10.0.0.1"),
            (b"\"[2001:db8::1]\"", "2001:db8::1", "\"[2001:db8::1]\", 10.0.0.1"),
            (b"2001:db8::1", "2001:db8::1", "2001:db8::1, 10.0.0.1"),
            (b"::ffff:198.51.100.1", "198.51.100.1", "::ffff:198.51.100.1, 10.0.0.1"),
        ] {
            let claims = x_forwarded(chain, "", "");
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            let name = String::from_utf8_lossy(chain);
            assert_eq!(forwarding.client, Some(ip(expected)), "{name}");
            assert_eq!(forwarded_for(&forwarding), passed, "{name}");
        }
        for (list, expected) in [
            (&b"for=1.1.1.1, for=198.51.100.1"[..], "198.51.100.1"),
            (b"For=198.51.100.1, FOR=10.9.9.9", "198.51.100.1"),
            (b"for=\"[2001:db8::1]:4711\";by=10.0.0.1", "2001:db8::1"),
            (b"for=\"198.51.100.1:4711\"", "198.51.100.1"),
            (b"for=\"x, for=198.51.100.1", "198.51.100.1"),
            (b"for=\"a,b\";by=_x, for=198.51.100.1;host=\"c,d\"", "198.51.100.1"),
            (b"for=1.1.1.1, for=_hidden", "10.0.0.1"),
            (b"for=1.1.1.1, for=unknown;proto=https", "10.0.0.1"),
            (b"for=\xff, for=198.51.100.1", "198.51.100.1"),
            (b"proto=https", "10.0.0.1"),
            (b"", "10.0.0.1"),
        ] {
            let claims = ProxyClaims::Forwarded(list.into());
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            assert_eq!(forwarding.client, Some(ip(expected)), "{}", String::from_utf8_lossy(list));
            let written = forwarded(&forwarding);
            assert!(written.bytes().filter(|&byte| byte == b'"').count() % 2 == 0, "{written}");
        }
    }

    #[test]
    fn scheme_host_port_and_prefix_are_those_of_the_proxy_that_names_the_client() {
        let peer = peer("10.0.0.1");
        for (addresses, proto, host, port, prefix, expected) in [
            ("198.51.100.1", "HTTPS", "", "", "", ("https", HOST, "8888", None)),
            ("198.51.100.1", "wss", "B.example", "", "/app", ("https", "B.example", "443", Some("/app"))),
            ("198.51.100.1", "ws", "[2001:db8::1]:81", "", "app", ("http", "[2001:db8::1]:81", "81", None)),
            ("198.51.100.1", "gopher", "a/b", "x", "//evil", ("http", HOST, "8888", None)),
            ("198.51.100.1", "https", "b.example", "8443", "/\u{e9}", ("https", "b.example", "8443", None)),
            // The client made up the first of each.
            ("1.1.1.1, 198.51.100.1", "http, https", "evil, b", "1, 2", "/e, /p", ("https", "b", "2", Some("/p"))),
            // Each of two proxies has appended its own.
            ("198.51.100.1, 10.0.0.9", "https, http", "b, c", "1, 2", "", ("https", "b", "1", None)),
            // The first has, the second has not.
            ("198.51.100.1, 10.0.0.9", "https", "b", "", "", ("https", "b", "443", None)),
            ("", "https", "b.example:70000", "0", "", ("https", HOST, "8888", None)),
        ] {
            let of = |text: &'static str| Cow::Borrowed(text.as_bytes());
            let claims = ProxyClaims::XForwarded(XForwarded {
                addresses: of(addresses),
                proto: of(proto),
                host: of(host),
                port: of(port),
                prefix: of(prefix),
            });
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            assert_eq!((forwarding.proto, forwarding.host, forwarding.port, forwarding.prefix), expected, "{claims:?}");
        }
        for (list, expected) in [
            ("for=1.1.1.1;proto=https;host=evil, for=198.51.100.1;Proto=HTTPS", ("https", HOST, "8888")),
            (
                "for=198.51.100.1;host=\"b.example:81\";proto=http, for=10.0.0.9;proto=https",
                ("http", "b.example:81", "81"),
            ),
            ("for=unknown;proto=https;host=b", ("https", "b", "443")),
        ] {
            let claims = ProxyClaims::Forwarded(list.as_bytes().into());
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            assert_eq!((forwarding.proto, forwarding.host, forwarding.port), expected, "{list}");
        }
    }

    #[test]
    fn a_trusted_proxy_names_the_scheme_also_where_it_connects_by_tls() {
        let peer = peer("10.0.0.1");
        for (proto, expected) in [("http", "http"), ("ws", "http"), ("https", "https"), ("wss", "https"), ("", "https")]
        {
            let claims = x_forwarded(b"203.0.113.7", proto, "");
            let origin = RequestOrigin { is_tls: true, ..origin(&peer, &claims) };
            assert_eq!(Forwarding::new(origin, &trusted()).proto, expected, "{proto}");
        }
    }

    #[test]
    fn ipv6_is_formatted_as_rfc_7239_requires() {
        let peer = peer("2001:db8::1");
        let forwarding = Forwarding::new(origin(&peer, &ProxyClaims::None), &TrustedPeers::default());
        assert!(forwarded(&forwarding).starts_with("for=\"[2001:db8::1]\";"));
    }

    #[test]
    fn the_client_is_written_as_claimed_or_as_the_peer() {
        let claimed = x_forwarded(b"203.0.113.7", "", "");
        for (peer, claims, expected) in [
            (peer("10.0.0.1"), &claimed, "203.0.113.7"),
            (peer("10.0.0.1"), &ProxyClaims::None, "10.0.0.1"),
            (peer("192.0.2.1"), &claimed, "192.0.2.1"),
            (Peer::new(PeerAddress::Unix), &ProxyClaims::None, "unix:"),
        ] {
            let mut text = String::new();
            Forwarding::new(origin(&peer, claims), &trusted()).write_client(&mut text).unwrap();
            assert_eq!(text, expected);
        }
    }

    #[test]
    fn a_malformed_list_is_replaced() {
        let peer = peer("10.0.0.1");
        for list in [
            &b"for=\"x, for=203.0.113.7"[..],
            b"by=\"a\\\"b\";for=203.0.113.7",
            b"by=a\\b;for=203.0.113.7",
            b"by=\xc3\xa9;for=203.0.113.7",
            b"by=\xff;for=203.0.113.7",
            b"by=\x07;for=203.0.113.7",
        ] {
            let claims = ProxyClaims::Forwarded(list.into());
            let written = forwarded(&Forwarding::new(origin(&peer, &claims), &trusted()));
            let expected = "for=203.0.113.7;host=\"a.example:8888\";proto=http, for=10.0.0.1";
            assert_eq!(written, expected, "{}", String::from_utf8_lossy(list));
        }
    }

    #[test]
    fn a_host_may_have_an_empty_port_and_malformed_hosts_are_ignored() {
        let peer = peer("10.0.0.1");
        for (claimed, host, port) in [
            ("b.example:", "b.example:", "80"),
            ("b-c_d~e:65535", "b-c_d~e:65535", "65535"),
            ("b.example:0", HOST, "8888"),
            ("b.example:+1", HOST, "8888"),
            ("[2001:db8::1]", "[2001:db8::1]", "80"),
            ("[x]", HOST, "8888"),
            (":81", HOST, "8888"),
        ] {
            let claims = x_forwarded(b"203.0.113.7", "", claimed);
            let forwarding = Forwarding::new(origin(&peer, &claims), &trusted());
            assert_eq!((forwarding.host, forwarding.port), (host, port), "{claimed}");
        }
    }

    #[test]
    fn a_peer_is_described_by_its_address() {
        let address: SocketAddr = "[::ffff:192.0.2.1]:4711".parse().expect("an address");
        let ip_address = PeerAddress::Ip(address);
        assert_eq!((ip_address.ip(), ip_address.to_string()), (Some(address.ip()), address.to_string()));
        assert_eq!((PeerAddress::Unix.ip(), PeerAddress::Unix.to_string()), (None, "unix:".to_owned()));
        let peer = Peer::without_tls(ip_address);
        assert_eq!((peer.address, peer.port, peer.as_str()), (Some(ip("192.0.2.1")), 4711, "192.0.2.1"));
        assert!(peer.lacks_tls && peer.client_certificate().is_none());
        let certificate = ClientCertificate {
            subject: "CN=a".into(),
            issuer: "CN=b".into(),
            sha1: "1".into(),
            sha256: "2".into(),
            lines: "".into(),
        };
        let tls = TlsInfo {
            protocol: "TLSv1.3",
            cipher: "TLS_AES_128_GCM_SHA256",
            server_name: None,
            is_resumed: false,
            client: Some(certificate.clone()),
        };
        let peer = Peer::with_tls(ip_address, tls, Some(address));
        assert_eq!((peer.client_certificate(), peer.local), (Some(&certificate), Some(address)));
        assert!(!peer.lacks_tls);
    }

    #[test]
    fn a_generated_request_id_has_128_random_bits() {
        clock::simulated::enter(1);
        let id = request_id(None);
        clock::simulated::enter(1);
        let expected = format!("{:016x}{:016x}", clock::random(), clock::random());
        clock::simulated::leave();
        assert_eq!(id, expected);
    }

    fn request_id(incoming: Option<&[u8]>) -> String {
        let mut id = String::new();
        write_request_id(incoming, &mut id).unwrap();
        id
    }

    #[test]
    fn request_ids_are_kept_when_safe_and_generated_otherwise() {
        // As the application has it.
        let longest = "x".repeat(128);
        for id in ["0af7651916cd43dd", "1", "Root=1-67891233:a/b+c@d_e.f", &longest] {
            assert_eq!(request_id(Some(id.as_bytes())), id);
        }
        let long = [b'a'; 129];
        for bad in [None, Some(&b""[..]), Some(b"a b"), Some(b"a\"b"), Some(b"\xff"), Some(&long)] {
            let id = request_id(bad);
            assert_eq!(id.len(), 32, "{id}");
        }
        assert_ne!(request_id(None), request_id(None));
    }
}
