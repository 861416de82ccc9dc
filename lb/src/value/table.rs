//! User-defined variables: each maps a value to another one by texts and expressions, by networks, or by shares
//! (nginx's `map`, `geo` and `split_clients`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use foldhash::HashMap;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::pattern::{Case, Groups, Pattern};
use super::variable::{GroupOf, Variable};
use super::{Facts, Phase, Presence, Scope, Value, VariableText, names};

/// Index of a table, in the order of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableId(pub u32);

/// All tables of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tables {
    /// `None`: it is being read, or it is invalid.
    tables: Vec<(Box<str>, Option<Table>)>,
}

/// A user-defined variable.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    of: Value,
    cases: Cases,
    /// The value if no case matches.
    default: Value,
    phase: Phase,
    /// The longest chain of tables that refer to each other, this one included.
    depth: usize,
}

/// How the value depends on `of`.
#[derive(Debug, Clone, PartialEq)]
enum Cases {
    Map(Box<MapCases>),
    Networks { written: Vec<(IpNet, Value)>, by_network: NetMap<usize> },
    Shares(Vec<Share>),
}

/// In this order: exact text, longest `*.x`, longest `x.*`, first expression. All but expressions ignore case.
#[derive(Debug, Clone, PartialEq)]
struct MapCases {
    hostnames: bool,
    written: Vec<(Box<str>, Value)>,
    exact: HashMap<Box<[u8]>, usize>,
    below: HashMap<Box<[u8]>, usize>,
    starting: HashMap<Box<[u8]>, usize>,
    patterns: Vec<(Pattern, usize)>,
    /// The length of the longest name in `below` and `starting`, in bytes. Longer names are not looked up in them, so
    /// that the cost for a long value is linear.
    longest_name: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Share {
    percent: Percent,
    value: Value,
    /// Hashes below it belong to this share or an earlier one.
    bound: u64,
}

/// Hundredths of a percent, 1 to 10,000.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u32);

/// A table as written.
#[derive(Debug, Clone)]
pub struct Written {
    pub name: String,
    /// The value that selects the case, such as `$host`.
    pub from: String,
    pub cases: WrittenCases,
    /// `None`: empty.
    pub default: Option<String>,
}

#[derive(Debug, Clone)]
pub enum WrittenCases {
    /// A case that begins with `~` is an expression, with `~*` one that ignores case; with a `\` before that it is a
    /// text. With `hostnames`, `*.x` and `x.*` are wildcards, and `.x` matches `x` and `*.x`.
    Map {
        cases: Vec<(String, String)>,
        hostnames: bool,
    },
    Networks(Vec<(IpNet, String)>),
    /// The rest takes the default.
    Shares(Vec<(Percent, String)>),
}

/// A problem with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableProblem {
    pub table: TableId,
    pub at: At,
    pub message: String,
}

/// A part of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Name,
    From,
    Default,
    /// Index in the order of the configuration.
    Case(usize),
}

/// Limit on the chain of tables that refer to each other.
const MAX_DEPTH: usize = 16;

impl Tables {
    /// No tables.
    pub fn none() -> &'static Self {
        static NONE: Tables = Tables { tables: Vec::new() };
        &NONE
    }

    /// Tables with these names and no content.
    pub fn unread(names: impl Iterator<Item = String>) -> Self {
        Self { tables: names.map(|name| (name.into(), None)).collect() }
    }

    /// Reads tables, which may refer to each other without cycles. The error lists all problems.
    pub fn read(written: &[Written]) -> Result<Self, Vec<TableProblem>> {
        let mut reader = Reader { written, tables: Self::default(), reading: BTreeSet::new(), problems: Vec::new() };
        reader.check_names();
        reader.tables.tables = written.iter().map(|table| (table.name.as_str().into(), None)).collect();
        for id in 0..written.len() {
            reader.read(id);
        }
        if reader.problems.is_empty() { Ok(reader.tables) } else { Err(reader.problems) }
    }

    pub fn len(&self) -> usize {
        self.tables.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub fn get(&self, id: TableId) -> Option<&Table> {
        self.tables.get(id.0 as usize)?.1.as_ref()
    }

    pub fn name(&self, id: TableId) -> &str {
        self.tables.get(id.0 as usize).map_or("", |(name, _)| name)
    }

    pub fn named(&self, name: &str) -> Option<TableId> {
        let index = self.tables.iter().position(|(known, _)| **known == *name)?;
        u32::try_from(index).ok().map(TableId)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tables.iter().map(|(name, _)| &**name)
    }

    /// Names and tables, in the order of the configuration.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Table)> {
        self.tables.iter().filter_map(|(name, table)| Some((&**name, table.as_ref()?)))
    }

    /// When the table's value is known.
    pub(super) fn phase(&self, id: TableId) -> Phase {
        self.get(id).map_or(Phase::Head, |table| table.phase)
    }

    /// The table's value, if it is the same for every request.
    pub(super) fn constant(&self, id: TableId) -> Option<&[u8]> {
        let table = self.get(id)?;
        table.find(table.of.as_constant()?).value.as_constant()
    }

    /// Appends the table's value. Implementations of [`Facts`] call this, and cache the result if it must not change
    /// during a request.
    pub fn write(&self, id: TableId, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        self.get(id).map_or(Presence::Missing, |table| table.write(facts, out))
    }
}

struct Reader<'a> {
    written: &'a [Written],
    tables: Tables,
    /// The chain of tables that led to the current one, which is included.
    reading: BTreeSet<usize>,
    problems: Vec<TableProblem>,
}

impl Reader<'_> {
    fn check_names(&mut self) {
        for (id, Written { name, .. }) in self.written.iter().enumerate() {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit());
            if !is_name {
                let allowed = "use letters, digits and _, and no digit at the start";
                self.problem(id, At::Name, format!("\"{name}\" is not a valid variable name: {allowed}"));
            } else if Variable::built_in(name).is_some() {
                self.problem(id, At::Name, format!("${name} has a meaning already; choose another name"));
            } else if self.written[..id].iter().any(|before| before.name == *name) {
                self.problem(id, At::Name, format!("\"{name}\" is written twice; choose another name"));
            }
        }
    }

    fn problem(&mut self, id: usize, at: At, message: String) {
        self.problems.push(TableProblem { table: TableId(id as u32), at, message });
    }

    /// Reads table `id`, after those that it refers to. Their depth is limited, and so is that of the recursion.
    fn read(&mut self, id: usize) {
        if self.tables.tables[id].1.is_some() || self.problems.iter().any(|problem| problem.table.0 as usize == id) {
            return;
        }
        let written = &self.written[id];
        self.reading.insert(id);
        let mut depth = 1;
        for other in asked(written).filter_map(|name| self.tables.named(name)).collect::<BTreeSet<_>>() {
            let name = &self.written[other.0 as usize].name;
            if self.reading.contains(&(other.0 as usize)) {
                let message = format!("${} asks ${name}, which asks ${0} in turn; break the circle", written.name);
                self.problem(id, At::From, message);
            } else if self.reading.len() >= MAX_DEPTH {
                let message = format!("${name} is the {MAX_DEPTH}th table that is asked one for another; join some");
                self.problem(id, At::From, message);
            } else {
                self.read(other.0 as usize);
                match self.tables.get(other) {
                    Some(table) => depth = depth.max(table.depth + 1),
                    None => {
                        self.problem(id, At::From, format!("${name}, which it asks, is wrong"));
                    }
                }
            }
        }
        self.reading.remove(&id);
        if depth > MAX_DEPTH {
            self.problem(id, At::From, format!("more than {MAX_DEPTH} tables are asked one for another; join some"));
        }
        if !self.problems.iter().any(|problem| problem.table.0 as usize == id) {
            self.tables.tables[id].1 = self.table(id, depth);
        }
    }

    fn table(&mut self, id: usize, depth: usize) -> Option<Table> {
        let written = &self.written[id];
        let of = self.value(id, At::From, &written.from, None);
        let default = self.value(id, At::Default, written.default.as_deref().unwrap_or_default(), None);
        let cases = match &written.cases {
            WrittenCases::Map { cases, hostnames } => self.map(id, cases, *hostnames),
            WrittenCases::Networks(networks) => self.networks(id, networks),
            WrittenCases::Shares(shares) => self.shares(id, shares),
        };
        let (of, default, cases) = (of?, default?, cases?);
        let results = cases.results().chain([&default, &of]);
        let phase = results.map(|value| value.phase(&self.tables)).max().unwrap_or(Phase::Head);
        Some(Table { of, cases, default, phase, depth })
    }

    fn value(&mut self, id: usize, at: At, text: &str, case: Option<&Pattern>) -> Option<Value> {
        let scope = Scope { tables: &self.tables, case, ..Scope::new(Phase::End) };
        match Value::parse(text, &scope) {
            Ok(value) => Some(value),
            Err(message) => {
                self.problem(id, at, message);
                None
            }
        }
    }

    fn map(&mut self, id: usize, cases: &[(String, String)], hostnames: bool) -> Option<Cases> {
        let mut map = MapCases {
            hostnames,
            written: Vec::new(),
            exact: HashMap::default(),
            below: HashMap::default(),
            starting: HashMap::default(),
            patterns: Vec::new(),
            longest_name: 0,
        };
        for (index, (text, result)) in cases.iter().enumerate() {
            let case = match MapCase::parse(text, hostnames) {
                Ok(case) => case,
                Err(message) => {
                    self.problem(id, At::Case(index), message);
                    continue;
                }
            };
            let pattern = if let MapCase::Matches(pattern) = &case { Some(pattern) } else { None };
            let Some(value) = self.value(id, At::Case(index), result, pattern) else { continue };
            if !map.insert(case, map.written.len()) {
                self.problem(id, At::Case(index), format!("\"{text}\" is listed already (case is ignored)"));
            }
            map.written.push((text.as_str().into(), value));
        }
        Some(Cases::Map(Box::new(map)))
    }

    fn networks(&mut self, id: usize, networks: &[(IpNet, String)]) -> Option<Cases> {
        let (mut written, mut by_network) = (Vec::new(), NetMap::default());
        for (index, (network, result)) in networks.iter().enumerate() {
            let Some(value) = self.value(id, At::Case(index), result, None) else { continue };
            if !by_network.insert(*network, written.len()) {
                self.problem(id, At::Case(index), format!("the network {network} is listed already"));
            }
            written.push((*network, value));
        }
        Some(Cases::Networks { written, by_network })
    }

    fn shares(&mut self, id: usize, shares: &[(Percent, String)]) -> Option<Cases> {
        let (mut all, mut sum, mut bound) = (Vec::new(), 0, 0);
        for (index, (percent, result)) in shares.iter().enumerate() {
            sum += u64::from(percent.0);
            if sum > u64::from(Percent::WHOLE.0) {
                let message = "the shares are more than 100 percent up to here; make them smaller".to_owned();
                self.problem(id, At::Case(index), message);
                return None;
            }
            bound = if sum < u64::from(Percent::WHOLE.0) { bound + percent.of_hashes() } else { u64::MAX };
            let Some(value) = self.value(id, At::Case(index), result, None) else { continue };
            all.push(Share { percent: *percent, value, bound });
        }
        Some(Cases::Shares(all))
    }
}

/// The names of all variables in a table's texts.
fn asked(written: &Written) -> Box<dyn Iterator<Item = &str> + '_> {
    let texts: Box<dyn Iterator<Item = &str>> = match &written.cases {
        WrittenCases::Map { cases, .. } => Box::new(cases.iter().map(|(_, text)| text.as_str())),
        WrittenCases::Networks(networks) => Box::new(networks.iter().map(|(_, text)| text.as_str())),
        WrittenCases::Shares(shares) => Box::new(shares.iter().map(|(_, text)| text.as_str())),
    };
    Box::new([written.from.as_str()].into_iter().chain(written.default.as_deref()).chain(texts).flat_map(names))
}

/// A case of a map.
enum MapCase {
    Exact(Box<[u8]>),
    /// `*.x`; for `.x`, also `x`.
    Below {
        name: Box<[u8]>,
        and_itself: bool,
    },
    /// `x.*`.
    Starting(Box<[u8]>),
    Matches(Pattern),
}

impl MapCase {
    fn parse(text: &str, hostnames: bool) -> Result<Self, String> {
        if let Some(expression) = text.strip_prefix("~*") {
            return Pattern::parse(expression, Case::Insensitive).map(Self::Matches);
        }
        if let Some(expression) = text.strip_prefix('~') {
            return Pattern::parse(expression, Case::Sensitive).map(Self::Matches);
        }
        let lower = text.strip_prefix('\\').unwrap_or(text).to_ascii_lowercase();
        if !hostnames {
            return Ok(Self::Exact(lower.into_bytes().into()));
        }
        let case = if let Some(name) = lower.strip_prefix("*.") {
            Self::Below { name: name.as_bytes().into(), and_itself: false }
        } else if let Some(name) = lower.strip_prefix('.') {
            Self::Below { name: name.as_bytes().into(), and_itself: true }
        } else if let Some(name) = lower.strip_suffix(".*") {
            Self::Starting(name.as_bytes().into())
        } else {
            Self::Exact(lower.as_bytes().into())
        };
        let (Self::Below { name, .. } | Self::Starting(name) | Self::Exact(name)) = &case else { return Ok(case) };
        let is_wild = !matches!(case, Self::Exact(_));
        if name.contains(&b'*') || (is_wild && (name.is_empty() || name.starts_with(b".") || name.ends_with(b"."))) {
            return Err(format!(
                "\"{text}\" is not a valid host name; a * may be its first or last part, as in *.example"
            ));
        }
        Ok(case)
    }
}

impl MapCases {
    /// Returns false if the case existed before.
    fn insert(&mut self, case: MapCase, index: usize) -> bool {
        if let MapCase::Starting(name) | MapCase::Below { name, .. } = &case {
            self.longest_name = self.longest_name.max(name.len());
        }
        match case {
            MapCase::Exact(text) => self.exact.insert(text, index).is_none(),
            MapCase::Starting(name) => self.starting.insert(name, index).is_none(),
            MapCase::Below { name, and_itself } => {
                let is_new = !and_itself || self.exact.insert(name.clone(), index).is_none();
                self.below.insert(name, index).is_none() && is_new
            }
            MapCase::Matches(pattern) => {
                self.patterns.push((pattern, index));
                true
            }
        }
    }

    fn find(&self, subject: &[u8]) -> Option<(usize, Option<&Pattern>)> {
        let lower = subject.to_ascii_lowercase();
        let mut key = &lower[..];
        if self.hostnames {
            key = key.strip_suffix(b".").unwrap_or(key);
        }
        if let Some(&index) = self.exact.get(key) {
            return Some((index, None));
        }
        let below = || names_below(key, self.longest_name).find_map(|name| self.below.get(name));
        let starting = || names_at_start(key, self.longest_name).find_map(|name| self.starting.get(name));
        if self.hostnames
            && let Some(&index) = below().or_else(starting)
        {
            return Some((index, None));
        }
        if subject.is_empty() {
            // As in nginx, only the case of the empty text matches it.
            return None;
        }
        let (pattern, index) = self.patterns.iter().find(|(pattern, _)| pattern.is_match(subject))?;
        Some((*index, Some(pattern)))
    }
}

/// The parts of `key` after each dot, of at most `longest` bytes, longest first.
pub(super) fn names_below(key: &[u8], longest: usize) -> impl Iterator<Item = &[u8]> {
    let start = key.len().saturating_sub(longest + 1);
    dots(&key[start..]).map(move |dot| &key[start + dot + 1..])
}

/// The parts of `key` before each dot that is not at its end, of at most `longest` bytes, longest first.
pub(super) fn names_at_start(key: &[u8], longest: usize) -> impl Iterator<Item = &[u8]> {
    let end = key.len().saturating_sub(1).min(longest + 1);
    dots(&key[..end]).rev().map(|dot| &key[..dot])
}

fn dots(text: &[u8]) -> impl DoubleEndedIterator<Item = usize> {
    text.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at)
}

impl Percent {
    pub const WHOLE: Self = Self(10_000);

    /// From a percentage above 0 and at most 100, with at most two decimal places.
    pub fn new(percent: f64) -> Result<Self, String> {
        let hundredths = (percent * 100.0).round();
        if !(1.0..=10_000.0).contains(&hundredths) || (hundredths / 100.0 - percent).abs() > 1e-9 {
            return Err(format!(
                "{percent} is not a valid share: write a percentage from 0.01 to 100, in steps of 0.01"
            ));
        }
        Ok(Self(hundredths as u32))
    }

    pub fn as_percent(self) -> f64 {
        f64::from(self.0) / 100.0
    }

    /// The part of all hash values, computed as nginx does.
    fn of_hashes(self) -> u64 {
        u64::from(u32::MAX) * u64::from(self.0) / u64::from(Self::WHOLE.0)
    }
}

/// The result of a table for one subject.
#[derive(Debug)]
pub struct Found<'a> {
    pub value: &'a Value,
    /// The expression that matched, if an expression did.
    pub pattern: Option<&'a Pattern>,
}

impl Table {
    /// The value that selects the case.
    pub fn of(&self) -> &Value {
        &self.of
    }

    /// Every possible result.
    pub fn results(&self) -> impl Iterator<Item = &Value> {
        self.cases.results().chain([&self.default])
    }

    /// The result for `subject`, the text of [`Self::of`].
    pub fn find(&self, subject: &[u8]) -> Found<'_> {
        let (index, pattern) = match &self.cases {
            Cases::Map(map) => map.find(subject).unzip(),
            Cases::Networks { by_network, .. } => {
                let address = std::str::from_utf8(subject).ok().and_then(|text| text.parse().ok());
                (address.and_then(|address| by_network.get(address)).copied(), None)
            }
            Cases::Shares(shares) => {
                let hash = u64::from(murmur_hash2(subject));
                (shares.iter().position(|share| hash < share.bound), None)
            }
        };
        let value = match (&self.cases, index) {
            (_, None) => None,
            (Cases::Map(map), Some(index)) => map.written.get(index).map(|(_, value)| value),
            (Cases::Networks { written, .. }, Some(index)) => written.get(index).map(|(_, value)| value),
            (Cases::Shares(shares), Some(index)) => shares.get(index).map(|share| &share.value),
        };
        Found { value: value.unwrap_or(&self.default), pattern: pattern.flatten() }
    }

    /// Appends the value for these facts.
    pub fn write(&self, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        let mut scratch = Vec::new();
        let subject = self.of.read(facts, &mut scratch).unwrap_or_default();
        let Found { value, pattern } = self.find(subject);
        let reads_groups = |pattern: &&Pattern| pattern.groups() > 0 && value.as_constant().is_none();
        match pattern.filter(reads_groups).and_then(|pattern| pattern.captures(subject)) {
            None => value.write(facts, out),
            Some(groups) => value.write(&WithCase { facts, subject, groups: &groups }, out),
        }
    }
}

/// Facts, with the groups of the case that matched.
struct WithCase<'a, F> {
    facts: &'a F,
    subject: &'a [u8],
    groups: &'a Groups,
}

impl<F: Facts> Facts for WithCase<'_, F> {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        self.facts.write(variable, out)
    }

    fn find(&self, variable: &Variable) -> VariableText<'_> {
        match variable {
            Variable::Group { of: GroupOf::Case, index } => {
                self.groups.text(*index, self.subject).map_or(VariableText::Missing, VariableText::Here)
            }
            other => self.facts.find(other),
        }
    }

    fn client(&self) -> Option<IpAddr> {
        self.facts.client()
    }
}

impl Cases {
    fn results(&self) -> impl Iterator<Item = &Value> {
        let results: Box<dyn Iterator<Item = &Value>> = match self {
            Self::Map(map) => Box::new(map.written.iter().map(|(_, value)| value)),
            Self::Networks { written, .. } => Box::new(written.iter().map(|(_, value)| value)),
            Self::Shares(shares) => Box::new(shares.iter().map(|share| &share.value)),
        };
        results
    }
}

/// A map by networks: the longest prefix that contains an address wins. IPv4-mapped IPv6 addresses count as IPv4.
#[derive(Debug, Clone, PartialEq)]
pub struct NetMap<T> {
    /// By prefix length, longest first.
    v4: Vec<(u8, HashMap<u128, T>)>,
    v6: Vec<(u8, HashMap<u128, T>)>,
}

impl<T> NetMap<T> {
    /// Returns false if the network existed before; it has the new value now.
    pub fn insert(&mut self, network: IpNet, value: T) -> bool {
        let (all, bits) = match network {
            IpNet::V4(network) => (&mut self.v4, u128::from(u32::from(network.network()))),
            IpNet::V6(network) => (&mut self.v6, u128::from(network.network())),
        };
        let length = network.prefix_len();
        let index = match all.binary_search_by(|(other, _)| length.cmp(other)) {
            Ok(index) => index,
            Err(index) => {
                all.insert(index, (length, HashMap::default()));
                index
            }
        };
        all[index].1.insert(bits, value).is_none()
    }

    pub fn get(&self, address: IpAddr) -> Option<&T> {
        let (all, width, bits) = match address.to_canonical() {
            IpAddr::V4(address) => (&self.v4, 32, u128::from(u32::from(address))),
            IpAddr::V6(address) => (&self.v6, 128, u128::from(address)),
        };
        all.iter().find_map(|(length, networks)| {
            let rest = width - u32::from(*length);
            networks.get(&bits.checked_shr(rest).and_then(|head| head.checked_shl(rest)).unwrap_or_default())
        })
    }
}

impl<T> Default for NetMap<T> {
    fn default() -> Self {
        Self { v4: Vec::new(), v6: Vec::new() }
    }
}

impl<T> FromIterator<(IpNet, T)> for NetMap<T> {
    fn from_iter<I: IntoIterator<Item = (IpNet, T)>>(networks: I) -> Self {
        let mut map = Self::default();
        for (network, value) in networks {
            map.insert(network, value);
        }
        map
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.as_percent())
    }
}

/// As in the configuration: `from`, `default`, and `cases`, `networks` or `shares`.
impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("from", &self.of)?;
        match &self.cases {
            Cases::Map(cases) => {
                map.serialize_entry("cases", &Pairs(|| cases.written.iter().map(|(case, value)| (case, value))))?;
                if cases.hostnames {
                    map.serialize_entry("hostnames", &true)?;
                }
            }
            Cases::Networks { written, .. } => {
                map.serialize_entry("networks", &Pairs(|| written.iter().map(|(network, value)| (network, value))))?;
            }
            Cases::Shares(shares) => {
                let shares: Vec<_> = shares.iter().map(|share| (share.percent, &share.value)).collect();
                map.serialize_entry("shares", &shares)?;
            }
        }
        map.serialize_entry("default", &self.default)?;
        map.end()
    }
}

impl Serialize for Tables {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

struct Pairs<F>(F);

impl<K: Serialize, V: Serialize, I: Iterator<Item = (K, V)>, F: Fn() -> I> Serialize for Pairs<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map((self.0)())
    }
}

/// MurmurHash2 by Austin Appleby with seed 0, as nginx's `split_clients` uses it.
pub fn murmur_hash2(bytes: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let (words, tail) = bytes.as_chunks::<4>();
    // For long texts, the length counts modulo 2^32.
    let mut hash = bytes.len() as u32;
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ hash >> 15
}
