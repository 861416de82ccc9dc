//! The algorithms of selection by their names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    pub const ALL: [Self; 4] = [Self::RoundRobin, Self::Weighted, Self::LeastConnections, Self::IpHash];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Weighted => "weighted",
            Self::LeastConnections => "least-connections",
            Self::IpHash => "ip-hash",
        }
    }

    /// The names that can be written, for messages.
    pub fn choices() -> String {
        Self::ALL.map(Self::as_str).join(", ")
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
        named.ok_or_else(|| format!("algorithm \"{text}\" is not one of {}", Self::choices()))
    }
}
