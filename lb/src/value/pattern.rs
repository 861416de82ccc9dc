//! Regular expressions in PCRE's dialect, matched without backtracking: the time is linear in the subject's length.
//! Expressions are of bytes, without Unicode. `$` fits at the end only; PCRE's fits before a last line break too.

use std::ops::Range;

use regex::bytes::{Regex, RegexBuilder};
use serde::{Serialize, Serializer};

/// Whether letters fit in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Case {
    Sensitive,
    Insensitive,
}

/// A regular expression. Two are equal if they were written the same.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    case: Case,
    regex: Regex,
    names: Box<[(Box<str>, u8)]>,
    groups: u8,
}

/// Where the groups of a match are in its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// From group 1 on. [`ABSENT`]: it took no part.
    spans: [(u32, u32); MAX_GROUPS],
}

/// Groups that an expression may have. Those that are not named can be asked for up to the ninth.
pub const MAX_GROUPS: usize = 15;

/// Bytes of an expression's text.
const MAX_TEXT_BYTES: usize = 4096;

/// Bytes of an expression when it is compiled.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// Bytes that each thread may keep to match it faster.
const MAX_CACHE_BYTES: usize = 256 << 10;

const ABSENT: (u32, u32) = (u32::MAX, u32::MAX);

impl Pattern {
    /// The error says what cannot be had and what to write instead.
    pub fn parse(text: &str, case: Case) -> Result<Self, String> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!("the regular expression has more than {MAX_TEXT_BYTES} bytes; make several of it"));
        }
        for missing in ["(?!", "(?=", "(?<!", "(?<=", "(?>", "(?|", "(*", "\\h", "\\v", "\\<", "&&", "{", "[["] {
            if text.contains(missing) {
                return Err(format!("{missing} in a regular expression is not there yet"));
            }
        }
        let regex = RegexBuilder::new(text)
            .unicode(false)
            .case_insensitive(case == Case::Insensitive)
            .size_limit(MAX_COMPILED_BYTES)
            .dfa_size_limit(MAX_CACHE_BYTES)
            .build()
            .map_err(|error| format!("the regular expression '{text}' is wrong: {error}"))?;
        let groups = regex.captures_len() - 1;
        if groups > MAX_GROUPS {
            return Err(format!(
                "the regular expression has more than {MAX_GROUPS} groups; write (?:…) where none is read"
            ));
        }
        let names = regex.capture_names().zip(0u8..).filter_map(|(name, index)| Some((name?.into(), index))).collect();
        Ok(Self { text: text.into(), case, regex, names, groups: groups as u8 })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn case(&self) -> Case {
        self.case
    }

    /// How many groups it has.
    pub fn groups(&self) -> u8 {
        self.groups
    }

    /// The number of the group of this name.
    pub fn group(&self, name: &str) -> Option<u8> {
        self.names.iter().find(|(known, _)| **known == *name).map(|(_, index)| *index)
    }

    /// The names of its groups.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(name, _)| &**name)
    }

    pub fn is_match(&self, subject: &[u8]) -> bool {
        self.regex.is_match(subject)
    }

    /// Where the groups of the first match are; `None`: there is no match.
    pub fn captures(&self, subject: &[u8]) -> Option<Groups> {
        let mut places = self.regex.capture_locations();
        self.regex.captures_read(&mut places, subject)?;
        let mut groups = Groups { spans: [ABSENT; MAX_GROUPS] };
        for (index, span) in groups.spans.iter_mut().enumerate() {
            if let Some((start, end)) = places.get(index + 1)
                && let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(end))
            {
                *span = (start, end);
            }
        }
        Some(groups)
    }
}

impl Groups {
    /// The place of group `index`, counted from 1, in the subject.
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
        self.text == other.text && self.case == other.case
    }
}

impl Eq for Pattern {}

/// With `(?i)` before it if case is ignored.
impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.case {
            Case::Sensitive => serializer.serialize_str(&self.text),
            Case::Insensitive => serializer.collect_str(&format_args!("(?i){}", self.text)),
        }
    }
}
