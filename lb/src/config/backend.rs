//! A backend as the operator writes it: address, weight, state.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a backend listens: an IP address or a host name, and a port. Written back exactly as it was configured,
/// because consistent hashing works on this text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackendAddress(String);

/// Share of traffic relative to the other backends of the pool: 1 to 1000. Zero is not a weight: use *down*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u16);

/// What the operator wants of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    Active,
    /// Finishes what is in flight, takes nothing new.
    Draining,
    /// Takes nothing and is not probed.
    Down,
    /// Draining, and leaves the pool with its last exchange. Not to be set in a configuration.
    #[serde(skip_deserializing)]
    Removing,
}

impl BackendAddress {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The socket address when no name has to be resolved.
    pub fn socket_address(&self) -> Option<SocketAddr> {
        self.0.parse().ok()
    }

    /// One spelling for all that mean the same: names in lower case and without a dot at the end, addresses as
    /// RFC 5952 writes them, no zeros before the port.
    pub fn canonical(&self) -> String {
        let (host, port) = self.host_and_port();
        match host.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip.to_canonical(), port).to_string(),
            Err(_) => format!("{}:{port}", host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()),
        }
    }

    /// Host (without brackets) and port.
    pub fn host_and_port(&self) -> (&str, u16) {
        let (host, port) = self.0.rsplit_once(':').expect("the constructor demands a port");
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        (host, port.parse().expect("the constructor demands a number"))
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" is not HOST:PORT, such as \"10.0.0.5:8080\", \"[::1]:8080\" or \"web1:8080\"");
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
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !l.starts_with('-')
        };
        let is_name = host.len() <= 253
            && host.strip_suffix('.').unwrap_or(host).split('.').all(label)
            && !host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if is_address || is_name { Ok(Self(text.to_owned())) } else { Err(wrong()) }
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
    pub const ONE: Self = Self(1);
    pub const MAX: u32 = 1000;

    pub fn new(weight: u32) -> Option<Self> {
        (1..=Self::MAX).contains(&weight).then_some(Self(weight as u16))
    }

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
    fn addresses_are_checked_and_kept_as_written() {
        for text in ["127.0.0.1:80", "[::1]:8080", "web1:8888", "a_b.example.com:1", "localhost:65535", "x.:80"] {
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
        ] {
            let address: BackendAddress = text.parse().expect("valid");
            assert_eq!(address.canonical(), canonical);
        }
    }

    #[test]
    fn host_and_port_lose_the_brackets() {
        let address: BackendAddress = "[::1]:8080".parse().expect("valid");
        assert_eq!(address.host_and_port(), ("::1", 8080));
    }

    #[test]
    fn weights_are_1_to_1000() {
        assert_eq!(Weight::new(0), None);
        assert_eq!(Weight::new(1001), None);
        assert_eq!(Weight::new(1000).map(Weight::as_u32), Some(1000));
    }
}
