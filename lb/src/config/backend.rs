//! A backend in the configuration: address, weight, state.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// The address of a backend: an IP address or host name, and a port; `unix:` and the path of a Unix socket; or `srv:`
/// and a name whose SRV records have hosts and ports (RFC 2782). Kept exactly as configured, because consistent hashing
/// uses this text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendAddress(String);

/// An address to connect to or to listen on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketAddress {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// The absolute path of a Unix socket, of at most [`MAX_UNIX_PATH_BYTES`].
    Unix(Arc<Path>),
}

/// The prefix for the path of a Unix socket. Alone, it stands for a peer on a Unix socket, which has no address.
pub const UNIX: &str = "unix:";
/// The prefix for an SRV name.
const SRV: &str = "srv:";
/// The longest path that fits into a socket address, without the final zero (unix(7)).
pub const MAX_UNIX_PATH_BYTES: usize = 107;

/// Share of traffic relative to the other backends of the pool: 1 to 1000. Zero is not a weight: use *down*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u16);

/// The state that the operator has set for a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    /// Takes traffic.
    Active,
    /// Finishes exchanges in flight, gets no new ones.
    Draining,
    /// Gets no traffic and is not probed.
    Down,
    /// Draining, and leaves the pool after its last exchange. Cannot be set in a configuration.
    #[serde(skip_deserializing)]
    Removing,
}

impl BackendAddress {
    /// As it was configured.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The socket address, if no name has to be resolved.
    pub fn socket_address(&self) -> Option<SocketAddress> {
        match self.unix_path() {
            Some(path) => Some(SocketAddress::Unix(path.into())),
            None => self.0.parse().ok().map(SocketAddress::Ip),
        }
    }

    /// The path, if it is that of a Unix socket.
    pub fn unix_path(&self) -> Option<&Path> {
        self.0.strip_prefix(UNIX).map(Path::new)
    }

    /// The SRV name, if hosts and ports come from its records.
    pub fn service(&self) -> Option<&str> {
        self.0.strip_prefix(SRV)
    }

    /// The canonical spelling: names in lower case and without a final dot, addresses as in RFC 5952, no leading zeros
    /// in the port.
    pub fn canonical(&self) -> String {
        if let Some(name) = self.service() {
            return format!("{SRV}{}", name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
        }
        let Some((host, port)) = self.host_and_port() else { return self.0.clone() };
        match host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip.to_canonical(), port).to_string(),
            Err(_) => format!("{}:{port}", host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()),
        }
    }

    /// Host (without brackets) and port; `None` for a Unix socket and an SRV name.
    pub fn host_and_port(&self) -> Option<(&str, u16)> {
        if self.unix_path().is_some() || self.service().is_some() {
            return None;
        }
        let (host, port) = self.0.rsplit_once(':').expect("the constructor demands a port");
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Some((host, port.parse().expect("the constructor demands a number")))
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return unix_path(text, path).map(|()| Self(text.to_owned()));
        }
        if let Some(name) = text.strip_prefix(SRV) {
            let wrong =
                || format!("\"{text}\" is not a service name, such as \"srv:_http._tcp.example\": it has no port");
            return if is_name(name) { Ok(Self(text.to_owned())) } else { Err(wrong()) };
        }
        let wrong = || {
            format!(
                "\"{text}\" is not HOST:PORT, such as \"10.0.0.5:8080\", \"[::1]:8080\" or \"web1:8080\", nor \"unix:/run/app.sock\" or \"srv:_http._tcp.example\""
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || port.parse::<u16>().map_or(true, |p| p == 0) {
            return Err(format!("\"{text}\": the port must be a number from 1 to 65535"));
        }
        let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let is_address = match bracketed {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => host.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv4()),
        };
        if is_address || is_name(host) { Ok(Self(text.to_owned())) } else { Err(wrong()) }
    }
}

/// Whether it may be a name in DNS.
fn is_name(host: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !l.starts_with('-')
    };
    host.len() <= 253
        && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
        && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// Checks the path of a Unix socket in `text`.
fn unix_path(text: &str, path: &str) -> Result<(), String> {
    if !path.starts_with('/') {
        return Err(format!("\"{text}\": the path of a Unix socket begins with \"/\", as in \"unix:/run/app.sock\""));
    }
    if path.ends_with('/') || path.chars().any(char::is_control) {
        return Err(format!("\"{}\" is not the path of a Unix socket: write its file", text.escape_debug()));
    }
    match path.len() {
        0..=MAX_UNIX_PATH_BYTES => Ok(()),
        length => Err(format!(
            "\"{text}\": the path has {length} bytes, and a Unix socket's has {MAX_UNIX_PATH_BYTES} at most: move the socket, or write a link that leads there"
        )),
    }
}

impl SocketAddress {
    /// `None` for a Unix socket.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        self.ip().map(|address| address.port())
    }

    /// Whether a client that connects to `address` reaches a listener at this address, too. `[::]` means IPv6 only.
    pub fn covers(&self, address: &Self) -> bool {
        let (Self::Ip(ip), Self::Ip(other)) = (self, address) else { return self == address };
        let is_same_family = ip.is_ipv4() == other.is_ipv4();
        ip == other || (ip.port() == other.port() && is_same_family && ip.ip().is_unspecified())
    }

    /// Whether two sockets would conflict.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

impl From<SocketAddr> for SocketAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

/// In the notation of a backend's address.
impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl Serialize for SocketAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl TryFrom<String> for BackendAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BackendAddress> for String {
    fn from(address: BackendAddress) -> Self {
        address.0
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Weight {
    /// The weight of a backend that is given none.
    pub const ONE: Self = Self(1);
    /// The largest weight.
    pub const MAX: u32 = 1000;

    /// `None` unless it is from 1 to [`Weight::MAX`].
    pub fn new(weight: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&weight).then_some(Self(weight as u16))
    }

    /// From 1 to [`Weight::MAX`].
    pub fn as_u32(self) -> u32 {
        self.0.into()
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<u32> for Weight {
    type Error = String;

    fn try_from(weight: u32) -> Result<Self, String> {
        Self::new(weight).ok_or_else(|| {
            format!("weight {weight} is not from 1 to {}; to send nothing to a backend use state \"down\"", Self::MAX)
        })
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.as_u32()
    }
}

impl AdminState {
    /// The name in settings, metrics and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Removing => "removing",
        }
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for AdminState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "active" => Ok(Self::Active),
            "draining" => Ok(Self::Draining),
            "down" => Ok(Self::Down),
            _ => Err(format!("state \"{text}\" is not one of active, draining, down")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_validated_and_kept_as_written() {
        for text in [
            "127.0.0.1:80",
            "[::1]:8080",
            "web1:8888",
            "a_b.example.com:1",
            "localhost:65535",
            "x.:80",
            "unix:/run/app.sock",
            "srv:_http._tcp.example",
        ] {
            assert_eq!(text.parse::<BackendAddress>().map(String::from).as_deref(), Ok(text));
        }
        for text in [
            "",
            ":80",
            "web1",
            "web1:",
            "web1:0",
            "web1:65536",
            "web1:+80",
            "::1:80",
            "http://a:80",
            "a b:80",
            "a..b:80",
            "1.2.3:80",
            "999.1.1.1:80",
            "-a:80",
            "[::1]",
            "[x]:80",
            "user@host:80",
            "unix:",
            "unix:app.sock",
            "unix:/run/",
            "unix:/run/\0app.sock",
            "unix:@app",
            "srv:",
            "srv:_http._tcp.example:80",
            "srv:10.0.0.1",
        ] {
            assert!(text.parse::<BackendAddress>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn one_backend_has_one_canonical_spelling() {
        for (text, canonical) in [
            ("Web1.Example:80", "web1.example:80"),
            ("web1.example.:080", "web1.example:80"),
            ("[0:0::0:1]:80", "[::1]:80"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("10.0.0.1:00080", "10.0.0.1:80"),
            ("srv:_http._tcp.Example.", "srv:_http._tcp.example"),
        ] {
            let address: BackendAddress = text.parse().expect("valid");
            assert_eq!(address.canonical(), canonical);
        }
    }

    #[test]
    fn host_and_port_lose_the_brackets() {
        let address: BackendAddress = "[::1]:8080".parse().expect("valid");
        assert_eq!(address.host_and_port(), Some(("::1", 8080)));
    }

    #[test]
    fn unix_socket_paths_are_limited_as_by_the_system() {
        let of = |length: usize| format!("unix:/{}", "s".repeat(length - 1));
        let address: BackendAddress = of(MAX_UNIX_PATH_BYTES).parse().expect("valid");
        let Some(SocketAddress::Unix(path)) = address.socket_address() else { panic!("{address} is no Unix socket") };
        assert!(std::os::unix::net::SocketAddr::from_pathname(&path).is_ok());
        assert_eq!((address.canonical(), address.host_and_port()), (address.as_str().to_owned(), None));
        let problem = of(MAX_UNIX_PATH_BYTES + 1).parse::<BackendAddress>().expect_err("too long");
        assert!(problem.contains("has 108 bytes"), "{problem}");
        let path = Path::new(&of(MAX_UNIX_PATH_BYTES + 1)["unix:".len()..]).to_owned();
        assert!(std::os::unix::net::SocketAddr::from_pathname(path).is_err());
    }

    #[test]
    fn weights_are_1_to_1000() {
        assert_eq!(Weight::new(0), None);
        assert_eq!(Weight::new(1001), None);
        assert_eq!(Weight::new(1000).map(Weight::as_u32), Some(1000));
    }
}
