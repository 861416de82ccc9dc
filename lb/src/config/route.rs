//! Hosts and paths of sites and routes in the configuration.

use std::fmt;
use std::hash::{Hash, Hasher};

use serde::{Serialize, Serializer};

use crate::value::pattern::Pattern;

/// Hosts, in lower case, without port and without final dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// Every host, and requests without one.
    Any,
    /// A name or an address.
    Exact(String),
    /// `*.example.com`: names below a domain, not the domain itself.
    Below(String),
    /// `www.example.*`: names that begin with these labels and have more.
    Starting(String),
    /// `~REGEX`, which may match a part of the name.
    Regex(Pattern),
}

/// A path by whole segments: `/api` covers `/api` and `/api/x`, not `/apix`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathPrefix(String);

impl HostPattern {
    /// Parses `""` (any), `example.com` or `*.example.com`. `None` for an impossible host.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::Any);
        }
        let lower = text.to_ascii_lowercase();
        let (name, below) = match lower.strip_prefix("*.") {
            Some(domain) => (domain, true),
            None => (lower.as_str(), false),
        };
        // A name that no request can have is refused: with empty labels, or with a final dot.
        let is_label = |label: &str| {
            (1..=63).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
        };
        let is_name = |n: &str| n.len() <= 253 && n != "_" && n.split('.').all(is_label);
        if let Some(literal) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            // In the notation of browsers, however it is configured.
            return literal.parse::<std::net::Ipv6Addr>().ok().map(|ip| Self::Exact(format!("[{ip}]")));
        }
        match below {
            _ if !is_name(name) => None,
            true => Some(Self::Below(name.to_owned())),
            false => Some(Self::Exact(name.to_owned())),
        }
    }

    /// Whether a host, without port, is one of these.
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Starting(labels) => host.len() > labels.len() + 1 && starts_with(host, labels),
            Self::Regex(regex) => regex.is_match(host.to_ascii_lowercase().as_bytes()),
            Self::Exact(name) => host.eq_ignore_ascii_case(name),
            Self::Below(domain) => {
                let Some(dot) = host.len().checked_sub(domain.len() + 1) else { return false };
                dot > 0
                    && host.as_bytes()[dot] == b'.'
                    && host.as_bytes()[dot + 1..].eq_ignore_ascii_case(domain.as_bytes())
            }
        }
    }

    /// Whether every host that `other` matches is matched by this one, as far as that can be decided.
    pub fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Exact(name)) => self.matches(name),
            (Self::Below(domain), Self::Below(inner)) => domain == inner || self.matches(inner),
            (one, other) => one == other,
        }
    }

    /// The order of matching: exact names before domains, longer domains before shorter, then prefixes in the same way,
    /// then regexes in file order, and any host last.
    pub fn rank(&self) -> (u8, usize) {
        match self {
            Self::Exact(_) => (4, 0),
            Self::Below(domain) => (3, domain.len()),
            Self::Starting(labels) => (2, labels.len()),
            Self::Regex(_) => (1, 0),
            Self::Any => (0, 0),
        }
    }
}

fn starts_with(host: &str, labels: &str) -> bool {
    let (host, labels) = (host.as_bytes(), labels.as_bytes());
    host.get(labels.len()) == Some(&b'.') && host[..labels.len()].eq_ignore_ascii_case(labels)
}

impl Hash for HostPattern {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Any => {}
            Self::Exact(text) | Self::Below(text) | Self::Starting(text) => text.hash(state),
            Self::Regex(regex) => regex.text().hash(state),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Exact(name) => f.write_str(name),
            Self::Below(domain) => write!(f, "*.{domain}"),
            Self::Starting(labels) => write!(f, "{labels}.*"),
            Self::Regex(regex) => write!(f, "~{}", regex.text()),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl PathPrefix {
    /// A path that begins with `/` and contains no query, fragment, space or control character.
    pub fn parse(text: &str) -> Option<Self> {
        let clean = text.starts_with('/') && !text.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'?' || b == b'#');
        // Requests are matched decoded, without empty segments and dot segments: other paths would never match.
        let is_escape =
            |(at, _)| text.as_bytes()[at + 1..].iter().take(2).filter(|b| b.is_ascii_hexdigit()).count() == 2;
        let segments = text.strip_suffix('/').unwrap_or(text).split('/').skip(1);
        let is_normal = segments.into_iter().all(|segment| !matches!(segment, "" | "." | ".."));
        (clean && is_normal && !text.match_indices('%').any(is_escape)).then(|| Self(text.to_owned()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether every path that matches `other` matches this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }

    /// Whether a decoded, normalised path is this one or below it.
    pub fn matches(&self, path: &[u8]) -> bool {
        let prefix = self.0.strip_suffix('/').unwrap_or(&self.0);
        match path.strip_prefix(prefix.as_bytes()) {
            Some(rest) => rest.starts_with(b"/") || (rest.is_empty() && !self.0.ends_with('/')),
            None => false,
        }
    }
}

impl Serialize for PathPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_invalid_hosts_and_paths() {
        for host in ["a b", "http://x", "x/y", "*.", "*", "x:80", "[::1", "[nonsense]"] {
            assert_eq!(HostPattern::parse(host), None, "{host:?}");
        }
        for path in ["", "api", "/a?b", "/a#b", "/a b", "/a\n"] {
            assert_eq!(PathPrefix::parse(path), None, "{path:?}");
        }
    }
}
