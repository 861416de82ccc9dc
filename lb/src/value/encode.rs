//! Encoding of values by where they are written, so that client input cannot break out: a field, a request target, a
//! `Location`, a log line.
//!
//! In targets and locations, a variable is encoded by its form and by its position (RFC 3986):
//!
//! - `$request_uri`, `$args`, `$is_args`, `$arg_NAME` and tables have the form of a target already. Only bytes that are
//!   invalid in a target are encoded.
//! - `$uri` and groups of the route's or the rewrite's expression are parts of a decoded path. In a path, everything is
//!   encoded that is not valid there, including `?` and `%`.
//! - All others are plain text: in a path, `/` is encoded, too.
//! - In a query, the latter two and `$request_uri` form one argument's value: `&`, `=`, `+` and `%` are encoded.

use serde::Serialize;

use super::table::Tables;
use super::variable::{GroupOf, Variable};
use super::{Facts, Part, PartRef, Parts, Presence, Value, write_variable};
use crate::message::ascii::{HOST, TARGET, TEXT, hex_value, is, trim};

/// How values are escaped in a log line, as with nginx's `log_format escape=`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Escape {
    /// `"`, `\` and everything except visible ASCII as `\xXX`; a missing value is `-`.
    #[default]
    Default,
    /// As within a JSON string; a missing value is empty.
    Json,
    /// Only line breaks, which would begin a new line, as `\x0D` and `\x0A`; a missing value is empty.
    None,
}

impl Value {
    /// Appends the value for a header field. A value that is not valid there (RFC 9110 §5.5), for example with a line
    /// break, counts as missing, and so does an empty one. Surrounding blanks are trimmed.
    pub fn write_field(&self, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        let start = out.len();
        let presence = self.write(facts, out);
        let written = &out[start..];
        let kept = trim(written);
        if presence == Presence::Missing || kept.is_empty() || !kept.iter().all(|&byte| is(byte, TEXT)) {
            out.truncate(start);
            return Presence::Missing;
        }
        let blanks = written.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let length = kept.len();
        out.copy_within(start + blanks..start + blanks + length, start);
        out.truncate(start + length);
        Presence::Present
    }

    /// Appends the value for a log line. Each variable contributes at most `max_bytes`, counted before escaping.
    /// Constant text is not changed.
    pub fn write_log(&self, escape: Escape, max_bytes: usize, facts: &impl Facts, out: &mut Vec<u8>) {
        let mut scratch = Vec::new();
        for part in self.parts() {
            match part {
                PartRef::Text(text) => out.extend_from_slice(text),
                PartRef::Variable(variable) => match (super::read_variable(variable, facts, &mut scratch), escape) {
                    (Some(text), _) => escape.write(&text[..text.len().min(max_bytes)], out),
                    (None, Escape::Default) => out.push(b'-'),
                    (None, Escape::Json | Escape::None) => {}
                },
            }
        }
    }

    /// Appends the value as path and query of a request. [`Presence::Missing`], with nothing appended: it is not valid,
    /// since it does not begin with `/`, or client input made a segment `.` or `..`.
    pub fn write_target(&self, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        let start = out.len();
        let has_data = self.write_encoded(Kind::Target, facts, out);
        let written = &out[start..];
        if !written.starts_with(b"/") || (has_data && has_dot_segments(written)) {
            out.truncate(start);
            return Presence::Missing;
        }
        Presence::Present
    }

    /// Like [`write_target`](Self::write_target), but stops before the first part that the client controls. Returns
    /// whether there was none.
    pub fn write_own_target(&self, tables: &Tables, facts: &impl Facts, out: &mut Vec<u8>) -> bool {
        let is_own = |part: &PartRef<'_>| match part {
            PartRef::Text(_) => true,
            PartRef::Variable(variable) => !variable.is_of_client(tables),
        };
        let own: Vec<_> = self.parts().take_while(is_own).map(Part::from).collect();
        let is_whole = own.len() == self.parts().count();
        Self { text: self.text.clone(), parts: Parts::of(own) }.write_encoded(Kind::Target, facts, out);
        is_whole
    }

    /// Appends the value for `Location`. Without a scheme it is a path on the same host, and begins with exactly one
    /// `/`. [`Presence::Missing`], with nothing appended: it has a scheme, but the variables that form the host were
    /// empty. Browsers would read `https:///a.example/` as `https://a.example/`.
    pub fn write_location(&self, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        let start = out.len();
        self.write_encoded(Kind::Location, facts, out);
        if lacks_host(&out[start..]) {
            out.truncate(start);
            return Presence::Missing;
        }
        if UrlPart::of(&out[start..]) == UrlPart::Start || out[start..].starts_with(b"/") {
            let slashes = out[start..].iter().take_while(|&&byte| byte == b'/').count();
            out.splice(start..start + slashes, [b'/']);
        }
        Presence::Present
    }

    /// Returns whether the path contains text that is neither constant nor in the form of a target.
    fn write_encoded(&self, kind: Kind, facts: &impl Facts, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let mut scratch = Vec::new();
        let mut has_data = false;
        for part in self.parts() {
            match part {
                PartRef::Text(text) => encode(text, Allowed::Written(kind), out),
                PartRef::Variable(variable) => {
                    scratch.clear();
                    write_variable(variable, facts, &mut scratch);
                    let part = UrlPart::of(&out[start..]);
                    let form = Form::of(variable);
                    has_data |= part == UrlPart::Path && form != Form::Target;
                    let may_begin_path = matches!(part, UrlPart::Start | UrlPart::Authority);
                    if may_begin_path && variable.begins_with_slash() && scratch.first() != Some(&b'/') {
                        out.push(b'/');
                    }
                    encode(&scratch, Allowed::of(variable, form, part, kind), out);
                }
            }
        }
        has_data
    }

    /// Checks that no request can make the value point to another host than the written one. The error says how it
    /// could.
    pub fn check_location(&self, tables: &Tables) -> Result<(), String> {
        let mut parts = self.parts().peekable();
        let elsewhere = |variable: &Variable| {
            let name = match variable {
                Variable::Table(id) => format!("${}", tables.name(*id)),
                variable => variable.to_string(),
            };
            format!(
                "in \"{}\", {name} would let clients choose the host that they are sent to; begin with \"/\", $uri, \
                 $request_uri or with a scheme, a host and \"/\", write a domain behind it, or choose by a table of [values]",
                self.text()
            )
        };
        let unclear = || {
            let text = self.text();
            Err(format!("\"{text}\" begins neither with \"/\" nor with \"http://\" or \"https://\"; write \"/{text}\""))
        };
        let mut authority: &[u8] = match parts.next() {
            Some(PartRef::Variable(Variable::Scheme)) => match parts.next() {
                Some(PartRef::Text(text)) if text.starts_with(b"://") => &text[3..],
                _ => return unclear(),
            },
            Some(PartRef::Variable(Variable::Table(id))) => {
                return tables.get(*id).map_or(Ok(()), |table| {
                    table.results().filter(|value| value.as_constant() != Some(b"")).try_for_each(|value| {
                        value
                            .check_location(tables)
                            .map_err(|why| format!("of what ${} can be: {why}", tables.name(*id)))
                    })
                });
            }
            Some(PartRef::Variable(variable)) if variable.begins_with_slash() => return Ok(()),
            Some(PartRef::Variable(variable)) => return Err(elsewhere(variable)),
            Some(PartRef::Text(text)) => match scheme_length(text) {
                Some(length) => &text[length..],
                None if text.starts_with(b"//") || text.starts_with(b"/\\") => {
                    return Err(format!(
                        "\"{}\" begins with \"//\"; write the scheme, as in \"https://\"",
                        self.text()
                    ));
                }
                None if text.starts_with(b"/") => return Ok(()),
                None => return unclear(),
            },
            None => return Err("it is empty; write where to".to_owned()),
        };
        let mut is_empty = true;
        loop {
            let end = authority.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#'));
            if authority[..end.unwrap_or(authority.len())].contains(&b'@') {
                return Err(format!(
                    "\"{}\" has a user before its host, who would be sent along; remove what ends with \"@\"",
                    self.text()
                ));
            }
            if let Some(end) = end {
                if is_empty && end == 0 {
                    return Err(format!("\"{}\" has no host; write it behind \"://\"", self.text()));
                }
                return Ok(());
            }
            is_empty &= authority.is_empty();
            match parts.next() {
                None if is_empty => return Err(format!("\"{}\" has no host; write it behind \"://\"", self.text())),
                None => return Ok(()),
                Some(PartRef::Text(text)) => authority = text,
                Some(PartRef::Variable(variable)) => {
                    // Without a query, the text behind it would become part of the host.
                    let ends = variable.begins_with_slash()
                        || (*variable == Variable::IsArgs
                            && matches!(parts.next(), Some(PartRef::Variable(Variable::Args)))
                            && parts.next().is_none());
                    if ends && !is_empty {
                        return Ok(());
                    }
                    // The text before a domain only chooses a name below it.
                    let is_below = matches!(parts.peek(), Some(PartRef::Text(text)) if begins_with_domain(text));
                    if !is_below && !variable.is_host(tables, None) {
                        return Err(elsewhere(variable));
                    }
                    (authority, is_empty) = (b"", false);
                }
            }
        }
    }
}

/// Whether it begins with a dot and a domain name of at least two labels. A domain of numbers would form an IPv4
/// address with the text before it.
fn begins_with_domain(text: &[u8]) -> bool {
    let Some((b'.', rest)) = text.split_first() else { return false };
    let end = rest.iter().position(|byte| matches!(byte, b':' | b'/' | b'?' | b'#')).unwrap_or(rest.len());
    let name = rest[..end].strip_suffix(b".").unwrap_or(&rest[..end]);
    let is_label = |label: &[u8]| {
        !label.is_empty() && label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let labels = name.split(|byte| *byte == b'.');
    let top = labels.clone().next_back().unwrap_or_default();
    labels.clone().count() > 1 && labels.clone().all(is_label) && !top[0].is_ascii_digit()
}

/// The length of `http://` or `https://` at the start.
fn scheme_length(text: &[u8]) -> Option<usize> {
    let length = |scheme: &str| {
        text.get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
            .then_some(scheme.len())
    };
    length("https://").or_else(|| length("http://"))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Target,
    Location,
}

/// The form of a variable's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A request target, already encoded.
    Target,
    /// A part of a decoded path.
    Path,
    Text,
}

impl Form {
    fn of(variable: &Variable) -> Self {
        match variable {
            Variable::RequestUri | Variable::Args | Variable::IsArgs | Variable::Query(_) | Variable::Table(_) => {
                Self::Target
            }
            Variable::Uri | Variable::Group { of: GroupOf::Route | GroupOf::Rewrite, .. } => Self::Path,
            _ => Self::Text,
        }
    }
}

impl Variable {
    /// Whether its text begins with `/`.
    fn begins_with_slash(&self) -> bool {
        matches!(self, Self::Uri | Self::RequestUri)
    }

    /// Whether it may be used as a host: clients can only make it the name or port of a host that is served by this
    /// site. `asked` is the value that selects the case, if this is the result of a table.
    fn is_host(&self, tables: &Tables, asked: Option<&Value>) -> bool {
        match self {
            Self::Host | Self::ServerName | Self::ServerPort | Self::Hostname => true,
            Self::Group { of: GroupOf::Host, .. } => true,
            Self::Group { of: GroupOf::Case, .. } => {
                asked.is_some_and(|asked| asked.variables().all(|variable| variable.is_host(tables, None)))
            }
            Self::Field(key) => key.fits(b"host"),
            Self::Table(id) => tables.get(*id).is_some_and(|table| {
                table.results().flat_map(Value::variables).all(|variable| variable.is_host(tables, Some(table.of())))
            }),
            _ => false,
        }
    }
}

/// A position in a URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UrlPart {
    /// It may still become a scheme or a path.
    Start,
    Authority,
    Path,
    /// In the query, or behind it.
    Query,
}

impl UrlPart {
    /// The position after `written`.
    fn of(written: &[u8]) -> Self {
        if written.iter().any(|byte| matches!(byte, b'?' | b'#')) {
            return Self::Query;
        }
        if written.starts_with(b"/") {
            return Self::Path;
        }
        match written.windows(3).position(|window| window == b"://") {
            None => Self::Start,
            Some(colon) if written[colon + 3..].contains(&b'/') => Self::Path,
            Some(_) => Self::Authority,
        }
    }
}

/// Which bytes are not encoded.
#[derive(Debug, Clone, Copy)]
enum Allowed {
    /// Text of the configuration, or in a target's form: only bytes that are invalid there are encoded.
    Written(Kind),
    Authority,
    Path,
    Segment,
    Argument,
}

impl Allowed {
    fn of(variable: &Variable, form: Form, part: UrlPart, kind: Kind) -> Self {
        match (part, form) {
            (UrlPart::Query, Form::Target) if *variable != Variable::RequestUri => Self::Written(kind),
            (UrlPart::Query, _) => Self::Argument,
            (UrlPart::Authority, _) if !variable.begins_with_slash() && *variable != Variable::IsArgs => {
                Self::Authority
            }
            (_, Form::Target) => Self::Written(kind),
            (_, Form::Path) => Self::Path,
            (_, Form::Text) => Self::Segment,
        }
    }

    fn has(self, byte: u8) -> bool {
        let is_unreserved = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        match self {
            // Some programs treat a backslash as a slash.
            Self::Written(kind) => {
                (is(byte, TARGET) && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}'))
                    || (byte == b'#' && kind == Kind::Location)
            }
            Self::Authority => is(byte, HOST) || matches!(byte, b':' | b'[' | b']'),
            Self::Path => is_unreserved || matches!(byte, b'/' | b':' | b'@' | b'!' | b'$' | b'&'..=b',' | b';' | b'='),
            Self::Segment => byte != b'/' && Self::Path.has(byte),
            Self::Argument => is_unreserved || matches!(byte, b'/' | b':' | b'@' | b','),
        }
    }
}

/// Whether a location has a scheme but no host. A port alone is not a host.
fn lacks_host(location: &[u8]) -> bool {
    let is_end = |byte: &u8| matches!(byte, b'/' | b'?' | b'#');
    let end = location.iter().position(is_end).unwrap_or(location.len());
    // The first slash belongs to the scheme.
    let (before, rest) = location.split_at(end);
    let Some(host) = rest.strip_prefix(b"//").filter(|_| before.ends_with(b":")) else { return false };
    host.first().is_none_or(|byte| is_end(byte) || *byte == b':')
}

/// Whether a segment of the target's path is `.` or `..`.
pub fn has_dot_segments(target: &[u8]) -> bool {
    let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
    path.split(|&byte| byte == b'/').any(|segment| matches!(segment, b"." | b".."))
}

/// Appends a part of a decoded path to a target.
pub fn write_path(text: &[u8], out: &mut Vec<u8>) {
    encode(text, Allowed::Path, out);
}

/// Appends text of the configuration to a target: only bytes that are invalid in a target are encoded.
pub fn write_written(text: &[u8], out: &mut Vec<u8>) {
    encode(text, Allowed::Written(Kind::Target), out);
}

/// Appends a query as received: only bytes above ASCII are encoded, which a listener may accept.
pub fn write_query(query: &[u8], out: &mut Vec<u8>) {
    for &byte in query {
        if is(byte, TARGET) { out.push(byte) } else { write_escape(byte, out) }
    }
}

fn encode(text: &[u8], allowed: Allowed, out: &mut Vec<u8>) {
    let is_escape = |at: usize| {
        matches!(allowed, Allowed::Written(_))
            && text.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(|&digit| hex_value(digit).is_some()))
    };
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'%' if is_escape(at) => out.push(byte),
            b'%' => out.extend_from_slice(b"%25"),
            byte if allowed.has(byte) => out.push(byte),
            byte => write_escape(byte, out),
        }
    }
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(&[b'%', hex(byte >> 4), hex(byte & 15)]);
}

fn hex(digit: u8) -> u8 {
    match digit {
        0..=9 => b'0' + digit,
        _ => b'A' + digit - 10,
    }
}

impl Escape {
    /// Appends `text`, escaped.
    pub fn write(self, text: &[u8], out: &mut Vec<u8>) {
        match self {
            Self::Default => {
                for &byte in text {
                    match byte {
                        b'"' | b'\\' | ..b' ' | 0x7f.. => {
                            out.extend_from_slice(&[b'\\', b'x', hex(byte >> 4), hex(byte & 15)]);
                        }
                        byte => out.push(byte),
                    }
                }
            }
            Self::None => {
                for &byte in text {
                    match byte {
                        b'\n' | b'\r' => out.extend_from_slice(&[b'\\', b'x', hex(byte >> 4), hex(byte & 15)]),
                        byte => out.push(byte),
                    }
                }
            }
            Self::Json => {
                // Invalid UTF-8 cannot be represented.
                for c in String::from_utf8_lossy(text).chars() {
                    match c {
                        '"' => out.extend_from_slice(b"\\\""),
                        '\\' => out.extend_from_slice(b"\\\\"),
                        '\n' => out.extend_from_slice(b"\\n"),
                        '\r' => out.extend_from_slice(b"\\r"),
                        '\t' => out.extend_from_slice(b"\\t"),
                        '\u{8}' => out.extend_from_slice(b"\\b"),
                        '\u{c}' => out.extend_from_slice(b"\\f"),
                        ..' ' => out.extend_from_slice(format!("\\u{:04X}", u32::from(c)).as_bytes()),
                        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
