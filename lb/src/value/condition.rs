//! Which requests a rule applies to: methods, client networks, and tests of values.

use foldhash::HashSet;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::pattern::Pattern;
use super::table::{NetMap, Tables};
use super::variable::Variable;
use super::{Facts, Phase, Value, read_variable};
use crate::message::ascii::is_token;

/// Holds if all of its parts hold; an empty condition always holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Condition {
    /// `None`: any method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<MethodSet>,
    /// The client must be in one of these networks; `None`: it may be anywhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub networks: Option<NetSet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<Test>,
}

/// One test of a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Test {
    pub of: Value,
    #[serde(flatten)]
    pub is: Comparison,
    /// Whether the result is inverted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub negated: bool,
}

/// What a value is compared with. A missing value equals nothing and matches nothing, not even the empty text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// It is present, even if it is empty.
    Present(Always),
    /// Compared byte by byte.
    Equal(Value),
    OneOf(TextSet),
    Matches(Pattern),
}

/// Written as `true`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Always;

/// Methods, which are case-sensitive (RFC 9110 §9.1), in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct MethodSet(Box<[Box<str>]>);

/// Networks, in the order in which they were written.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct NetSet {
    networks: Box<[IpNet]>,
    #[serde(skip)]
    map: NetMap<()>,
}

/// Texts, in the order in which they were written.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
pub struct TextSet {
    texts: Box<[Box<str>]>,
    #[serde(skip)]
    set: HashSet<Box<[u8]>>,
}

impl Condition {
    pub fn is_empty(&self) -> bool {
        self.methods.is_none() && self.networks.is_none() && self.tests.is_empty()
    }

    pub fn holds(&self, facts: &impl Facts) -> bool {
        let mut scratch = Vec::new();
        if let Some(methods) = &self.methods {
            let method = read_variable(&Variable::RequestMethod, facts, &mut scratch);
            if !method.is_some_and(|method| methods.contains(method)) {
                return false;
            }
        }
        if let Some(networks) = &self.networks
            && !facts.client().is_some_and(|client| networks.contains(client))
        {
            return false;
        }
        self.tests.iter().all(|test| test.holds(facts))
    }

    /// Calls `asked` with every variable that its tests depend on, like [`Value::each_asked`].
    pub fn each_asked(&self, tables: &Tables, asked: &mut impl FnMut(&Variable)) {
        for Test { of, is, .. } in &self.tests {
            of.each_asked(tables, asked);
            if let Comparison::Equal(value) = is {
                value.each_asked(tables, asked);
            }
        }
    }

    /// When its result is known.
    pub fn phase(&self, tables: &Tables) -> Phase {
        self.tests.iter().map(|test| test.phase(tables)).max().unwrap_or(Phase::Head)
    }
}

impl Test {
    pub fn holds(&self, facts: &impl Facts) -> bool {
        let mut scratch = Vec::new();
        let value = self.of.read(facts, &mut scratch);
        let holds = match (&self.is, value) {
            (_, None) => false,
            (Comparison::Present(_), Some(_)) => true,
            (Comparison::Equal(other), Some(value)) => {
                let mut scratch = Vec::new();
                other.read(facts, &mut scratch).is_some_and(|other| other == value)
            }
            (Comparison::OneOf(texts), Some(value)) => texts.contains(value),
            (Comparison::Matches(pattern), Some(value)) => pattern.is_match(value),
        };
        holds != self.negated
    }

    fn phase(&self, tables: &Tables) -> Phase {
        let other = match &self.is {
            Comparison::Equal(value) => value.phase(tables),
            _ => Phase::Head,
        };
        self.of.phase(tables).max(other)
    }
}

impl MethodSet {
    /// The error names the invalid method.
    pub fn new(methods: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, String> {
        let mut set: Vec<Box<str>> = Vec::new();
        for method in methods {
            let method = method.as_ref();
            if !is_token(method.as_bytes()) {
                return Err(format!("\"{method}\" is not a method; write for example \"GET\""));
            }
            let upper = method.to_ascii_uppercase();
            if upper != method && ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"].contains(&upper.as_str())
            {
                return Err(format!("\"{method}\" is not the method {upper}: case matters; write \"{upper}\""));
            }
            if set.iter().any(|known| **known == *method) {
                return Err(format!("\"{method}\" is written twice; leave one out"));
            }
            set.push(method.into());
        }
        Ok(Self(set.into()))
    }

    pub fn contains(&self, method: &[u8]) -> bool {
        self.0.iter().any(|known| known.as_bytes() == method)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|method| &**method)
    }
}

impl NetSet {
    pub fn new(networks: impl IntoIterator<Item = IpNet>) -> Self {
        let networks: Box<[IpNet]> = networks.into_iter().collect();
        let map = networks.iter().map(|network| (*network, ())).collect();
        Self { networks, map }
    }

    pub fn contains(&self, address: std::net::IpAddr) -> bool {
        self.map.get(address).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = &IpNet> {
        self.networks.iter()
    }
}

impl TextSet {
    pub fn new(texts: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let texts: Box<[Box<str>]> = texts.into_iter().map(|text| text.as_ref().into()).collect();
        let set = texts.iter().map(|text| text.as_bytes().into()).collect();
        Self { texts, set }
    }

    pub fn contains(&self, text: &[u8]) -> bool {
        self.set.contains(text)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|text| &**text)
    }
}

impl PartialEq for TextSet {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl Eq for TextSet {}

impl Serialize for Always {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bool(true)
    }
}

#[cfg(test)]
mod tests;
