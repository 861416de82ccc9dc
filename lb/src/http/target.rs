//! Request targets and locations made of values. What a client sent is data there: it never begins a query, a fragment or
//! another host. The operator's own text, and what is a target already, stays as it is.

use super::facts::RequestFacts;
use crate::config::site::{Matcher, Rewrite};
use crate::message::ascii::{self, TARGET};
use crate::value::variable::Variable;
use crate::value::{Facts, PartRef, Presence, Value};

/// Appends `value` as a target or location.
pub fn write(value: &Value, facts: &impl Facts, out: &mut Vec<u8>) {
    let mut made = Vec::new();
    for part in value.parts() {
        match part {
            PartRef::Text(text) => write_text(text, b"#", out),
            PartRef::Variable(variable) => {
                made.clear();
                if facts.write(variable, &mut made) == Presence::Present {
                    if is_target(variable) { write_text(&made, b"", out) } else { write_data(&made, out) }
                }
            }
        }
    }
}

/// Appends `value` as a `Location`: an absolute one, or a path of the same host, which cannot begin as another host does.
pub fn write_location(value: &Value, facts: &impl Facts, out: &mut Vec<u8>) {
    let start = out.len();
    write(value, facts, out);
    keep_on_host(out, start);
}

/// What begins with `//` names another host, and to browsers `/\` does too: one slash is left.
pub fn keep_on_host(out: &mut Vec<u8>, start: usize) {
    if out.get(start) == Some(&b'/') {
        let more = out[start + 1..].iter().take_while(|byte| matches!(byte, b'/' | b'\\')).count();
        out.drain(start + 1..start + 1 + more);
    }
}

/// What the backend is asked for in place of path and query as they are now; `None`: those stay.
pub fn rewritten(rewrite: &Rewrite, facts: &RequestFacts<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match rewrite {
        Rewrite::Prefix { prefix } => {
            let (site, route) = facts.place?;
            let cut = match &site.route_config(route)?.matcher {
                // `/api` and `/api/` stand for the folder: what is below it begins with the slash.
                Matcher::Path(path) => path.as_str().strip_suffix('/').unwrap_or(path.as_str()),
                Matcher::Exact(path) | Matcher::Prefix(path) => path,
                Matcher::Regex(_) | Matcher::Named => "",
            };
            let rest = facts.path.strip_prefix(cut.as_bytes()).unwrap_or(facts.path);
            write_text(prefix.as_bytes(), b"", &mut out);
            let rest = if out.ends_with(b"/") { rest.strip_prefix(b"/").unwrap_or(rest) } else { rest };
            write_data(rest, &mut out);
        }
        Rewrite::Regex { regex, to } => {
            let groups = regex.captures(facts.path)?;
            write(to, &RequestFacts { rewrite: Some((&groups, facts.path)), ..*facts }, &mut out);
        }
        Rewrite::To { to } => write(to, facts, &mut out),
    }
    if !out.starts_with(b"/") {
        out.insert(0, b'/');
    }
    if let Some(fragment) = out.iter().position(|&byte| byte == b'#') {
        out.truncate(fragment);
    }
    if let Some(query) = facts.query().filter(|_| !out.contains(&b'?')) {
        out.push(b'?');
        out.extend_from_slice(query);
    }
    Some(out)
}

/// Whether the text of a variable is sound in a target: it was part of one, or its form was checked. A table's text is the
/// operator's, or was made from such.
fn is_target(variable: &Variable) -> bool {
    match variable {
        Variable::Args | Variable::IsArgs | Variable::RequestUri | Variable::Query(_) => true,
        Variable::Host | Variable::Scheme | Variable::ServerName | Variable::ServerPort | Variable::Table(_) => true,
        Variable::Field(key) => key.fits(b"host"),
        _ => false,
    }
}

/// Appends what is a target already, but for bytes that no target holds and are not in `also`.
fn write_text(text: &[u8], also: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        if ascii::is(byte, TARGET) || also.contains(&byte) { out.push(byte) } else { write_escape(byte, out) }
    }
}

/// Appends decoded text as a part of a path, slashes included.
fn write_data(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        let is_plain = byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte);
        if is_plain { out.push(byte) } else { write_escape(byte, out) }
    }
}

fn write_escape(byte: u8, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{Phase, Scope};

    /// A request for `/a b?c%/` decoded, with a query and a field of a client's choice.
    struct Client;

    impl Facts for Client {
        fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
            let text: &[u8] = match variable {
                Variable::Uri => b"//evil.example/a b?c%#\r\n\xe9",
                Variable::RequestUri => b"//evil.example/x?y=1",
                Variable::Host => b"a.example",
                Variable::Args => b"y=1&z=%20",
                Variable::IsArgs => b"?",
                Variable::Field(_) => b"x@evil.example?#\r\nX: y",
                _ => return Presence::Missing,
            };
            out.extend_from_slice(text);
            Presence::Present
        }
    }

    fn location(text: &str) -> String {
        let value = Value::parse(text, &Scope::new(Phase::Route)).expect("a value");
        let mut out = Vec::new();
        write_location(&value, &Client, &mut out);
        String::from_utf8(out).expect("ASCII")
    }

    #[test]
    fn what_a_client_sent_stays_in_its_place() {
        for (text, expected) in [
            ("/new?a=b#c", "/new?a=b#c"),
            ("$uri", "/evil.example/a%20b%3Fc%25%23%0D%0A%E9"),
            ("$request_uri", "/evil.example/x?y=1"),
            ("/\\$uri", "/evil.example/a%20b%3Fc%25%23%0D%0A%E9"),
            ("https://$host$request_uri", "https://a.example//evil.example/x?y=1"),
            ("https://$host/x$is_args$args", "https://a.example/x?y=1&z=%20"),
            ("/a/$http_x", "/a/x@evil.example%3F%23%0D%0AX:%20y"),
            ("/\u{e9} \u{7f}", "/%C3%A9%20%7F"),
        ] {
            assert_eq!(location(text), expected, "{text}");
        }
    }
}
