//! The load balancing algorithms and their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How one backend of several is chosen for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Each candidate in turn, weights ignored.
    RoundRobin,
    /// Smooth weighted round robin: 5:1:1 goes a a b a c a a (nginx's `weight=`).
    Weighted,
    /// Fewest exchanges in flight per unit of weight, ties in turn (nginx's `least_conn`).
    LeastConnections,
    /// Ketama on the client's address (nginx's `hash $remote_addr consistent`).
    IpHash,
}

impl Algorithm {
    /// In the order of the documentation.
    pub const ALL: [Self; 4] = [Self::RoundRobin, Self::Weighted, Self::LeastConnections, Self::IpHash];

    /// The name in settings, metrics and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::LeastConnections => "least-connections",
            Self::IpHash => "ip-hash",
        }
    }

    /// The valid names, for messages.
    pub fn choices() -> String {
        Self::ALL.map(Self::as_str).join(", ")
    }
}

/// Names of the algorithms in other balancers.
const ELSEWHERE: &[(&str, Algorithm)] = &[
    ("rr", Algorithm::RoundRobin),
    ("roundrobin", Algorithm::RoundRobin),
    ("wrr", Algorithm::Weighted),
    ("swrr", Algorithm::Weighted),
    ("weightedroundrobin", Algorithm::Weighted),
    ("staticrr", Algorithm::Weighted),
    ("lc", Algorithm::LeastConnections),
    ("leastconn", Algorithm::LeastConnections),
    ("leastconnection", Algorithm::LeastConnections),
    ("leastconnections", Algorithm::LeastConnections),
    ("leastrequest", Algorithm::LeastConnections),
    ("iphash", Algorithm::IpHash),
    ("source", Algorithm::IpHash),
    ("hash", Algorithm::IpHash),
    ("ketama", Algorithm::IpHash),
    ("ringhash", Algorithm::IpHash),
];

impl Algorithm {
    /// The likely intended algorithm for a name of another balancer, or one with other separators.
    pub fn meant(text: &str) -> Option<Self> {
        let letters: String = text.chars().filter(|c| !"-_ .".contains(*c)).flat_map(char::to_lowercase).collect();
        let own = || Self::ALL.into_iter().find(|algorithm| algorithm.as_str().replace('-', "") == letters);
        let elsewhere = ELSEWHERE.iter().find(|(name, _)| *name == letters).map(|(_, algorithm)| *algorithm);
        elsewhere.or_else(own)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|a| a.as_str() == text);
        let hint = || Self::meant(text).map_or(String::new(), |meant| format!(": did you mean \"{meant}\"?"));
        named.ok_or_else(|| format!("algorithm \"{text}\" is not one of {}{}", Self::choices(), hint()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_algorithms_in_other_balancers_are_answered_with_ours() {
        for (text, meant) in [
            ("rr", Some(Algorithm::RoundRobin)),
            ("leastconn", Some(Algorithm::LeastConnections)),
            ("least_conn", Some(Algorithm::LeastConnections)),
            ("iphash", Some(Algorithm::IpHash)),
            ("ROUND_ROBIN", Some(Algorithm::RoundRobin)),
            ("fastest", None),
        ] {
            assert_eq!(Algorithm::meant(text), meant, "{text}");
        }
        let error = "least_conn".parse::<Algorithm>().expect_err("not ours");
        assert!(error.ends_with("ip-hash: did you mean \"least-connections\"?"), "{error}");
    }
}
