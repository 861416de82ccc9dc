//! Regular expressions in PCRE's dialect, matched without backtracking: the time is linear in the length of the
//! subject. Expressions match bytes, without Unicode. As in PCRE, `$` also matches before a final line break, and `.`
//! matches no line break.

mod ahead;
mod pcre;

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use foldhash::HashMap;
use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::{Serialize, Serializer};

use self::ahead::{Step, may_be_empty, whole};
use self::pcre::{Node, Set};
use super::variable::Variable;

/// Whether letters match in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Case {
    Sensitive,
    Insensitive,
}

/// A regular expression. Two are equal if their text is the same.
#[derive(Debug, Clone)]
pub struct Pattern(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    text: Box<str>,
    case: Case,
    names: Box<[(Box<str>, u8)]>,
    groups: u8,
    /// In the dialect of `regex`, without the guards.
    translated: Box<str>,
    matcher: Matcher,
    /// `None`: the matcher suffices, since no group is read.
    regex: Option<Regex>,
    /// PCRE's group number for each group of `regex`.
    order: Box<[u8]>,
    guards: Box<[Guard]>,
}

/// Finds the first of several expressions that matches. If there are enough of them, one search first tells whether any
/// of them can match.
#[derive(Debug)]
pub struct Patterns<T> {
    all: Box<[(Pattern, T)]>,
    /// A set of those that are not plain texts. `None`: trying each of them is faster.
    any: Option<RegexSet>,
}

/// The sets built so far. Sites often have the same expressions, and building a set takes long.
#[derive(Debug, Default)]
pub struct Sets(HashMap<Box<[String]>, Option<RegexSet>>);

/// A look-ahead: what must match, or must not, besides the expression itself.
#[derive(Debug)]
struct Guard {
    regex: Regex,
    is_negative: bool,
}

/// How a match is decided.
#[derive(Debug)]
enum Matcher {
    Regex,
    /// The subject begins with one of these texts, ends with one, or equals one.
    Text {
        at: Anchored,
        texts: Box<[Box<[u8]>]>,
        ignores_case: bool,
        /// A line break may follow at the end.
        takes_break: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anchored {
    Start,
    End,
    Both,
}

/// The positions of a match's groups in its subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Groups {
    /// From group 1 on. [`ABSENT`]: the group did not take part in the match.
    spans: [(u32, u32); MAX_GROUPS],
}

/// Limit on the groups of an expression. Unnamed ones can be referred to up to the ninth.
pub const MAX_GROUPS: usize = 15;

/// Limit on the length of an expression, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// Limit on the size of a compiled expression, in bytes.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// Limit on the cache that each thread may keep to match it faster, in bytes.
const MAX_CACHE_BYTES: usize = 256 << 10;

/// From this many expressions on, a set is searched first.
const MIN_SET_PATTERNS: usize = 4;

/// Limit on the texts that are compared one by one.
const MAX_TEXTS: usize = 16;

const ABSENT: (u32, u32) = (u32::MAX, u32::MAX);

impl Pattern {
    /// The error says what is unsupported and what to write instead.
    pub fn parse(text: &str, case: Case) -> Result<Self, String> {
        Self::read(text, case).map_err(|why| format!("the regular expression '{text}' cannot be used: {why}"))
    }

    fn read(text: &str, case: Case) -> Result<Self, String> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!("it has more than {MAX_TEXT_BYTES} bytes; make several of it"));
        }
        let parsed = pcre::parse(text, case == Case::Insensitive).map_err(|refused| refused.to_string())?;
        if usize::from(parsed.groups) > MAX_GROUPS {
            return Err(format!("it has more than {MAX_GROUPS} groups; write (?:…) where none is read"));
        }
        if let Some((name, _)) = parsed.names.iter().find(|(name, _)| Variable::built_in(name).is_some()) {
            return Err(format!("${name} has a meaning already; give the group another name"));
        }
        let (node, guards) = ahead::resolve(parsed.node).map_err(|refused| refused.to_string())?;
        let matcher = if guards.is_empty() { Matcher::of(&node) } else { Matcher::Regex };
        let mut order = Vec::new();
        let mut translated = String::new();
        translate(&node, Some(&mut order), &mut translated);
        let is_needed = matches!(matcher, Matcher::Regex) || parsed.groups > 0;
        let regex = is_needed.then(|| compile(&translated)).transpose()?;
        let guards = guards.into_iter().map(Guard::new).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Compiled {
            text: text.into(),
            case,
            names: parsed.names.into(),
            groups: parsed.groups,
            translated: translated.into(),
            matcher,
            regex,
            order: order.into(),
            guards,
        })))
    }

    /// Whether both are one compiled expression.
    #[cfg(test)]
    pub fn is_shared_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The text as written.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    pub fn case(&self) -> Case {
        self.0.case
    }

    /// The number of its groups.
    pub fn groups(&self) -> u8 {
        self.0.groups
    }

    /// The number of the group of this name.
    pub fn group(&self, name: &str) -> Option<u8> {
        self.0.names.iter().find(|(known, _)| **known == *name).map(|(_, index)| *index)
    }

    /// The names of its groups.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names.iter().map(|(name, _)| &**name)
    }

    /// An expression for the crate `regex`, of bytes and without Unicode, that matches everything that this one does,
    /// and perhaps more. It is for sets of expressions, which are searched first.
    pub fn translated(&self) -> &str {
        &self.0.translated
    }

    /// Whether it is decided by comparing a few texts, which is faster than a set.
    pub fn is_plain(&self) -> bool {
        !matches!(self.0.matcher, Matcher::Regex)
    }

    pub fn is_match(&self, subject: &[u8]) -> bool {
        match &self.0.matcher {
            Matcher::Text { at, texts, ignores_case, takes_break } => {
                at.fits(texts, *ignores_case, subject)
                    || *takes_break
                        && subject.strip_suffix(b"\n").is_some_and(|line| at.fits(texts, *ignores_case, line))
            }
            Matcher::Regex => {
                self.0.regex.as_ref().is_some_and(|regex| regex.is_match(subject)) && self.guards_hold(subject)
            }
        }
    }

    /// The groups of the first match; `None`: no match.
    pub fn captures(&self, subject: &[u8]) -> Option<Groups> {
        let mut groups = Groups { spans: [ABSENT; MAX_GROUPS] };
        let Some(regex) = self.0.regex.as_ref().filter(|_| self.0.groups > 0) else {
            return self.is_match(subject).then_some(groups);
        };
        let mut locations = regex.capture_locations();
        regex.captures_read(&mut locations, subject)?;
        if !self.guards_hold(subject) {
            return None;
        }
        for (position, index) in self.0.order.iter().enumerate() {
            if let Some(span) = groups.spans.get_mut(usize::from(*index).wrapping_sub(1))
                && let Some((start, end)) = locations.get(position + 1)
                && let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end))
            {
                *span = (start, end);
            }
        }
        Some(groups)
    }

    fn guards_hold(&self, subject: &[u8]) -> bool {
        self.0.guards.iter().all(|guard| guard.regex.is_match(subject) != guard.is_negative)
    }
}

impl<T> Patterns<T> {
    pub fn new(all: impl Into<Box<[(Pattern, T)]>>, sets: &mut Sets) -> Self {
        let all = all.into();
        let others = all.iter().filter(|(one, _)| !one.is_plain()).map(|(one, _)| one.translated().to_owned());
        let others: Box<[String]> = others.collect();
        let any = if others.len() < MIN_SET_PATTERNS { None } else { sets.set(others) };
        Self { all, any }
    }

    /// The first match for which `holds` returns true.
    #[inline]
    pub fn find(&self, subject: &[u8], mut holds: impl FnMut(&T) -> bool) -> Option<&T> {
        if self.all.is_empty() {
            return None;
        }
        // Without their guards they match the same or more.
        let may_match = self.any.as_ref().is_none_or(|any| any.is_match(subject));
        let fits = |one: &Pattern| (may_match || one.is_plain()) && one.is_match(subject);
        self.all.iter().find(|(one, target)| fits(one) && holds(target)).map(|(_, target)| target)
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl Sets {
    /// `None`: it would be too large.
    fn set(&mut self, expressions: Box<[String]>) -> Option<RegexSet> {
        let set = self.0.entry(expressions);
        let set = set.or_insert_with_key(|expressions| {
            let mut builder = RegexSetBuilder::new(expressions);
            builder.unicode(false).size_limit(MAX_COMPILED_BYTES).dfa_size_limit(MAX_CACHE_BYTES).nest_limit(1000);
            builder.build().ok()
        });
        set.clone()
    }
}

impl Guard {
    fn new(guard: ahead::Guard) -> Result<Self, String> {
        let mut text = format!(r"\A(?s:.){{{}}}(?:", guard.offset);
        translate(&guard.node, None, &mut text);
        text.push(')');
        Ok(Self { regex: compile(&text)?, is_negative: guard.is_negative })
    }
}

fn compile(text: &str) -> Result<Regex, String> {
    let mut builder = RegexBuilder::new(text);
    builder.unicode(false).size_limit(MAX_COMPILED_BYTES).dfa_size_limit(MAX_CACHE_BYTES).nest_limit(1000);
    builder.build().map_err(|error| match error {
        regex::Error::CompiledTooBig(bytes) => format!("it needs more than {bytes} bytes; repeat less often"),
        other => other.to_string(),
    })
}

impl Matcher {
    fn of(node: &Node) -> Self {
        Self::texts(node).unwrap_or(Self::Regex)
    }

    /// For an expression of a few texts at the start or the end, or both.
    fn texts(node: &Node) -> Option<Self> {
        let mut nodes = match node {
            Node::Sequence(nodes) => &nodes[..],
            node => std::slice::from_ref(node),
        };
        let has_start = nodes.first() == Some(&Node::Start);
        nodes = &nodes[usize::from(has_start)..];
        let takes_break = nodes.last() == Some(&Node::Dollar);
        let has_end = takes_break || nodes.last() == Some(&Node::End);
        nodes = &nodes[..nodes.len() - usize::from(has_end)];
        if !has_end {
            // A trailing part that may be empty decides nothing.
            let kept = nodes.iter().rposition(|node| !may_be_empty(node)).map_or(0, |last| last + 1);
            nodes = &nodes[..kept];
        }
        let at = match (has_start, has_end) {
            (true, true) => Anchored::Both,
            (true, false) => Anchored::Start,
            (false, true) => Anchored::End,
            (false, false) if nodes.is_empty() => Anchored::Start,
            (false, false) => return None,
        };
        let all = whole(&Node::Sequence(nodes.to_vec()))?;
        if all.len() > MAX_TEXTS {
            return None;
        }
        let mut steps = all.iter().flatten().map(|step| match step {
            Step::One(set) => Letter::of(*set),
            Step::End | Step::Dollar => None,
        });
        let letters = steps.by_ref().collect::<Option<Vec<_>>>()?;
        let ignores_case = letters.iter().any(|letter| letter.ignores_case);
        if ignores_case && letters.iter().any(|letter| letter.byte.is_ascii_alphabetic() && !letter.ignores_case) {
            return None;
        }
        let mut letters = letters.iter().map(|letter| letter.byte);
        let texts = all.iter().map(|text| letters.by_ref().take(text.len()).collect()).collect();
        Some(Self::Text { at, texts, ignores_case, takes_break })
    }
}

struct Letter {
    byte: u8,
    ignores_case: bool,
}

impl Letter {
    fn of(set: Set) -> Option<Self> {
        if let Some(byte) = set.single() {
            return Some(Self { byte, ignores_case: false });
        }
        let byte = set.bytes().next()?.to_ascii_lowercase();
        (set == Set::of([byte]).folded()).then_some(Self { byte, ignores_case: true })
    }
}

impl Anchored {
    fn fits(self, texts: &[Box<[u8]>], ignores_case: bool, subject: &[u8]) -> bool {
        texts.iter().any(|text| {
            let part = match self {
                Self::Start => subject.get(..text.len()),
                Self::End => subject.len().checked_sub(text.len()).and_then(|start| subject.get(start..)),
                Self::Both => Some(subject),
            };
            part.is_some_and(|part| if ignores_case { part.eq_ignore_ascii_case(text) } else { *part == **text })
        })
    }
}

/// Appends `node` in the dialect of `regex`, and its groups to `order`; `None`: groups are not read.
fn translate(node: &Node, mut order: Option<&mut Vec<u8>>, out: &mut String) {
    match node {
        Node::Empty => {}
        Node::One(set) => class(*set, out),
        Node::Start => out.push_str(r"\A"),
        Node::End => out.push_str(r"\z"),
        Node::Dollar => out.push_str(DOLLAR),
        Node::LineEnd => out.push_str("(?m:$)"),
        Node::WordEdge(true) => out.push_str(r"\b"),
        Node::WordEdge(false) => out.push_str(r"\B"),
        Node::Sequence(nodes) => {
            for node in nodes {
                // Separates an alternative from what is beside it.
                let is_either = matches!(node, Node::Either(_));
                out.push_str(if is_either { "(?:" } else { "" });
                translate(node, order.as_deref_mut(), out);
                out.push_str(if is_either { ")" } else { "" });
            }
        }
        Node::Either(nodes) => {
            for (index, node) in nodes.iter().enumerate() {
                out.push_str(if index > 0 { "|" } else { "" });
                translate(node, order.as_deref_mut(), out);
            }
        }
        Node::Group(index, inner) => {
            match order.as_deref_mut() {
                Some(order) => {
                    order.push(*index);
                    out.push('(');
                }
                None => out.push_str("(?:"),
            }
            let without = without_dollar(inner);
            translate(without.as_ref().unwrap_or(inner), order, out);
            out.push(')');
            out.push_str(if without.is_some() { DOLLAR } else { "" });
        }
        Node::Repeat { of, min, max, is_greedy } => {
            out.push_str("(?:");
            translate(of, order, out);
            out.push(')');
            match (min, max) {
                (0, None) => out.push('*'),
                (1, None) => out.push('+'),
                (0, Some(1)) => out.push('?'),
                (min, None) => _ = write!(out, "{{{min},}}"),
                (min, Some(max)) => _ = write!(out, "{{{min},{max}}}"),
            }
            out.push_str(if *is_greedy { "" } else { "?" });
        }
        // These were replaced by guards before.
        Node::Ahead { .. } => class(Set::default(), out),
    }
}

/// `$`. What it consumes belongs to no group, since nothing that could match follows it.
const DOLLAR: &str = r"(?:\n?\z)";

/// The content of a group without the `$` at its end, which then has to be written after the group. `None`: it does not
/// end with `$`.
fn without_dollar(node: &Node) -> Option<Node> {
    match node {
        Node::Dollar => Some(Node::LineEnd),
        Node::Sequence(nodes) => {
            let (last, before) = nodes.split_last()?;
            let last = without_dollar(last)?;
            Some(Node::Sequence(before.iter().cloned().chain([last]).collect()))
        }
        Node::Either(nodes) => nodes.iter().map(without_dollar).collect::<Option<_>>().map(Node::Either),
        Node::Group(index, inner) => Some(Node::Group(*index, Box::new(without_dollar(inner)?))),
        _ => None,
    }
}

/// Appends a class in the syntax of `regex`, with everything escaped.
fn class(set: Set, out: &mut String) {
    let byte = |byte: u8, out: &mut String| match byte {
        b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'/' | b'_' => out.push(char::from(byte)),
        other => _ = write!(out, r"\x{other:02x}"),
    };
    if let Some(single) = set.single() {
        return byte(single, out);
    }
    if set.is_empty() {
        // The shortest expression of `regex` that never matches.
        return out.push_str("[a&&b]");
    }
    out.push('[');
    let mut rest = set.bytes().peekable();
    while let Some(low) = rest.next() {
        let mut high = low;
        while let Some(next) = rest.next_if(|next| Some(*next) == high.checked_add(1)) {
            high = next;
        }
        byte(low, out);
        if high > low {
            out.push('-');
            byte(high, out);
        }
    }
    out.push(']');
}

impl Groups {
    /// The position of group `index`, counted from 1, in the subject.
    pub fn span(&self, index: u8) -> Option<Range<usize>> {
        let span = self.spans.get(usize::from(index).checked_sub(1)?)?;
        (*span != ABSENT).then_some(span.0 as usize..span.1 as usize)
    }

    /// The text of group `index`. `subject` is what was matched.
    pub fn text<'a>(&self, index: u8, subject: &'a [u8]) -> Option<&'a [u8]> {
        subject.get(self.span(index)?)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text && self.0.case == other.0.case
    }
}

impl Eq for Pattern {}

/// With `(?i)` in front if case is ignored.
impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.case {
            Case::Sensitive => serializer.serialize_str(&self.0.text),
            Case::Insensitive => serializer.collect_str(&format_args!("(?i){}", self.0.text)),
        }
    }
}

#[cfg(test)]
mod tests;
