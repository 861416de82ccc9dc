//! Values with variables, patterns and conditions: what the configuration says about requests, parsed once and
//! evaluated per request. Pure: [`Facts`] provides what is known about a request.
//!
//! - [`variable`]: the variables.
//! - [`pattern`]: regular expressions in PCRE's dialect, matched without backtracking.
//! - [`condition`]: which requests a rule applies to.
//! - [`table`]: user-defined variables (`[values]`).
//! - [`encode`]: encoding for fields, targets, `Location` and logs, so that client input cannot break out.
//! - [`request`]: lookup of fields, cookies and query arguments.

pub mod condition;
pub mod encode;
pub mod pattern;
pub mod request;
pub mod table;
pub mod variable;

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use self::pattern::Pattern;
use self::table::Tables;
use self::variable::{GroupOf, Variable};

/// Text with variables, such as `https://$host$request_uri`. Two values are equal if they have the same text and the
/// same meaning: a name may refer to a group of another expression, or to another table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    text: Box<str>,
    parts: Parts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Parts {
    Constant(Box<[u8]>),
    One(Variable),
    /// At least two.
    Many(Box<[Part]>),
}

/// A part of a value. Texts are not empty, and no two are adjacent.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<[u8]>),
    Variable(Variable),
}

/// When a value becomes known. A value that would be needed earlier is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// With the request's head.
    Head,
    /// Once the route is chosen.
    Route,
    /// With the head of the response.
    Answer,
    /// At the end of the exchange.
    End,
}

/// Whether a value exists. Only logs and conditions distinguish an empty value from a missing one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    Missing,
    Present,
}

/// The text of a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariableText<'a> {
    Missing,
    Here(&'a [u8]),
    /// It has to be written with [`Facts::write`].
    Made,
}

/// What is known about a request.
pub trait Facts {
    /// Appends the text of `variable`. A variable that is not known yet is missing. A missing one writes nothing.
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence;

    /// The text of `variable`, if it can be borrowed.
    fn find(&self, _variable: &Variable) -> VariableText<'_> {
        VariableText::Made
    }

    /// The address of `$remote_addr`.
    fn client(&self) -> Option<IpAddr> {
        let mut text = Vec::new();
        self.write(&Variable::RemoteAddr, &mut text);
        std::str::from_utf8(&text).ok()?.parse().ok()
    }
}

/// What variables can refer to at the position of a text.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    pub tables: &'a Tables,
    /// The expression among the site's hosts, if it has one.
    pub host: Option<&'a Pattern>,
    /// The expression of the route's path.
    pub route: Option<&'a Pattern>,
    /// The expression of the rewrite that the text belongs to.
    pub rewrite: Option<&'a Pattern>,
    /// The expression of the case whose result the text is.
    pub case: Option<&'a Pattern>,
    /// When the value is evaluated.
    pub known: Phase,
}

impl Scope<'_> {
    /// Without tables and expressions.
    pub fn new(known: Phase) -> Self {
        Self { tables: Tables::none(), host: None, route: None, rewrite: None, case: None, known }
    }

    /// The expressions whose groups can be named, innermost first.
    fn expressions(&self) -> impl Iterator<Item = (GroupOf, &Pattern)> {
        [
            (GroupOf::Case, self.case),
            (GroupOf::Rewrite, self.rewrite),
            (GroupOf::Route, self.route),
            (GroupOf::Host, self.host),
        ]
        .into_iter()
        .filter_map(|(of, pattern)| Some((of, pattern?)))
    }
}

impl Value {
    /// Parses text in which `$name` and `${name}` are variables and `$$` is a dollar sign. The error says what is wrong
    /// and what to write instead.
    pub fn parse(text: &str, scope: &Scope<'_>) -> Result<Self, String> {
        let mut parts = Vec::new();
        for piece in Pieces(text) {
            match piece? {
                Piece::Text(text) => push_text(&mut parts, text.as_bytes()),
                Piece::Variable(name) => {
                    let variable = Variable::parse(name, scope)?;
                    let phase = variable.phase(scope.tables);
                    if phase > scope.known {
                        return Err(format!(
                            "${name} is known {}, and this is needed {}",
                            phase.since(),
                            scope.known.before()
                        ));
                    }
                    match variable {
                        Variable::Table(id) if let Some(constant) = scope.tables.constant(id) => {
                            push_text(&mut parts, constant);
                        }
                        variable => parts.push(Part::Variable(variable)),
                    }
                }
            }
        }
        Ok(Self { text: text.into(), parts: Parts::of(parts) })
    }

    /// Text without variables: a `$` in it is a dollar sign.
    pub fn constant(text: &str) -> Self {
        Self { text: text.replace('$', "$$").into(), parts: Parts::Constant(text.as_bytes().into()) }
    }

    /// One variable and nothing else.
    pub fn variable(variable: Variable) -> Self {
        Self { text: variable.to_string().into(), parts: Parts::One(variable) }
    }

    /// The text as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn as_constant(&self) -> Option<&[u8]> {
        match &self.parts {
            Parts::Constant(text) => Some(text),
            _ => None,
        }
    }

    pub fn as_variable(&self) -> Option<&Variable> {
        match &self.parts {
            Parts::One(variable) => Some(variable),
            _ => None,
        }
    }

    /// All variables in it, in order.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.parts().filter_map(|part| match part {
            PartRef::Text(_) => None,
            PartRef::Variable(variable) => Some(variable),
        })
    }

    /// Calls `asked` with every variable that the value depends on, including those of tables; some perhaps more than
    /// once.
    pub fn each_asked(&self, tables: &Tables, asked: &mut impl FnMut(&Variable)) {
        for variable in self.variables() {
            asked(variable);
            if let Variable::Table(id) = variable
                && let Some(table) = tables.get(*id)
            {
                // References between tables have no cycles.
                table.results().chain([table.of()]).for_each(|value| value.each_asked(tables, asked));
            }
        }
    }

    /// When its value is known.
    pub fn phase(&self, tables: &Tables) -> Phase {
        self.variables().map(|variable| variable.phase(tables)).max().unwrap_or(Phase::Head)
    }

    /// Appends the value. It is missing if it is one variable that is missing.
    pub fn write(&self, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        match &self.parts {
            Parts::Constant(text) => {
                out.extend_from_slice(text);
                Presence::Present
            }
            Parts::One(variable) => write_variable(variable, facts, out),
            Parts::Many(parts) => {
                for part in parts {
                    match part {
                        Part::Text(text) => out.extend_from_slice(text),
                        Part::Variable(variable) => _ = write_variable(variable, facts, out),
                    }
                }
                Presence::Present
            }
        }
    }

    /// The value, borrowed if possible, or else in `scratch`, which is overwritten. `None`: it is missing.
    pub fn read<'a>(&'a self, facts: &'a impl Facts, scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
        match &self.parts {
            Parts::Constant(text) => Some(text),
            Parts::One(variable) => read_variable(variable, facts, scratch),
            Parts::Many(_) => {
                scratch.clear();
                self.write(facts, scratch);
                Some(scratch)
            }
        }
    }

    /// Its parts in order.
    pub fn parts(&self) -> impl Iterator<Item = PartRef<'_>> {
        let (one, many): (_, &[Part]) = match &self.parts {
            Parts::Constant(text) => (Some(PartRef::Text(text)).filter(|_| !text.is_empty()), &[]),
            Parts::One(variable) => (Some(PartRef::Variable(variable)), &[]),
            Parts::Many(parts) => (None, parts),
        };
        one.into_iter().chain(many.iter().map(|part| match part {
            Part::Text(text) => PartRef::Text(text),
            Part::Variable(variable) => PartRef::Variable(variable),
        }))
    }
}

/// A borrowed part of a value.
#[derive(Debug, Clone, Copy)]
pub enum PartRef<'a> {
    Text(&'a [u8]),
    Variable(&'a Variable),
}

impl From<PartRef<'_>> for Part {
    fn from(part: PartRef<'_>) -> Self {
        match part {
            PartRef::Text(text) => Self::Text(text.into()),
            PartRef::Variable(variable) => Self::Variable(variable.clone()),
        }
    }
}

fn write_variable(variable: &Variable, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
    match facts.find(variable) {
        VariableText::Missing => Presence::Missing,
        VariableText::Here(text) => {
            out.extend_from_slice(text);
            Presence::Present
        }
        VariableText::Made => facts.write(variable, out),
    }
}

/// The text of `variable`, borrowed if possible, or else in `scratch`, which is overwritten.
fn read_variable<'a>(variable: &Variable, facts: &'a impl Facts, scratch: &'a mut Vec<u8>) -> Option<&'a [u8]> {
    match facts.find(variable) {
        VariableText::Missing => None,
        VariableText::Here(text) => Some(text),
        VariableText::Made => {
            scratch.clear();
            (facts.write(variable, scratch) == Presence::Present).then_some(scratch)
        }
    }
}

fn push_text(parts: &mut Vec<Part>, text: &[u8]) {
    match parts.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Text(before)) => *before = [before, text].concat().into(),
        _ => parts.push(Part::Text(text.into())),
    }
}

impl Parts {
    fn of(mut parts: Vec<Part>) -> Self {
        match parts.len() {
            0 => Self::Constant(Box::default()),
            1 => match parts.remove(0) {
                Part::Text(text) => Self::Constant(text),
                Part::Variable(variable) => Self::One(variable),
            },
            _ => Self::Many(parts.into()),
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl Phase {
    fn since(self) -> &'static str {
        match self {
            Self::Head => "from the start",
            Self::Route => "only once the route is chosen",
            Self::Answer => "only once the head of the response is there",
            Self::End => "only when the response has ended",
        }
    }

    fn before(self) -> &'static str {
        match self {
            Self::Head => "to choose the route",
            Self::Route => "before there is a response",
            Self::Answer => "before the response has ended",
            Self::End => "when the response has ended",
        }
    }
}

/// Splits a text into plain texts and variable names.
struct Pieces<'a>(&'a str);

enum Piece<'a> {
    Text(&'a str),
    Variable(&'a str),
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Result<Piece<'a>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = self.0;
        if text.is_empty() {
            return None;
        }
        let dollar = text.find('$').unwrap_or(text.len());
        if dollar > 0 {
            let (before, rest) = text.split_at(dollar);
            self.0 = rest;
            return Some(Ok(Piece::Text(before)));
        }
        // After an error, nothing more is parsed.
        self.0 = "";
        let rest = &text[1..];
        if let Some(rest) = rest.strip_prefix('$') {
            self.0 = rest;
            return Some(Ok(Piece::Text("$")));
        }
        if let Some(rest) = rest.strip_prefix('{') {
            let Some((name, rest)) = rest.split_once('}') else {
                return Some(Err("\"${\" has no \"}\"; write ${name}, or $$ for a dollar sign".to_owned()));
            };
            self.0 = rest;
            return Some(Ok(Piece::Variable(name)));
        }
        // As in nginx, a group number is one digit: the rest is text.
        let length = match rest.bytes().next() {
            Some(b'0'..=b'9') => 1,
            _ => rest.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || *byte == b'_').count(),
        };
        if length == 0 {
            return Some(Err("a \"$\" without a name; write $$ for a dollar sign".to_owned()));
        }
        let (name, rest) = rest.split_at(length);
        self.0 = rest;
        Some(Ok(Piece::Variable(name)))
    }
}

/// The names of the variables in `text`, up to the first syntax error.
pub(crate) fn names(text: &str) -> impl Iterator<Item = &str> {
    Pieces(text).filter_map(|piece| match piece {
        Ok(Piece::Variable(name)) => Some(name),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
