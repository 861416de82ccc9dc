//! Request targets made of values, as [`crate::value::encode`] writes them.

use super::facts::RequestFacts;
use crate::config::site::{Matcher, Rewrite};
use crate::message::path::normalise;
use crate::site::RouteId;
use crate::value::encode::{has_dot_segments, write_path, write_query, write_written};
use crate::value::{Facts, Presence, Value};

/// Appends `value` as path and query. What cannot be such is `/`.
pub(super) fn write(value: &Value, facts: &impl Facts, out: &mut Vec<u8>) {
    if value.write_target(facts, out) == Presence::Missing {
        out.push(b'/');
    }
}

/// Whether the operator has written that a jump leads to this route: where a client has a say in the path, what stands
/// before that is a path of the route already. Else a client could choose an internal one.
pub(super) fn names(to: &Value, route: RouteId, facts: &RequestFacts<'_>) -> bool {
    let mut own = Vec::new();
    if to.write_own_target(facts.tables, facts, &mut own) {
        return true;
    }
    let end = own.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(own.len());
    let mut scratch = Vec::new();
    let Some((site, _)) = facts.matched else { return false };
    normalise(&own[..end], &mut scratch).is_ok_and(|path| site.covers(route, path))
}

/// What begins with `//` names another host, and to browsers `/\` does too: one slash is left.
pub(super) fn keep_on_host(out: &mut Vec<u8>, start: usize) {
    if out.get(start) == Some(&b'/') {
        let more = out[start + 1..].iter().take_while(|byte| matches!(byte, b'/' | b'\\')).count();
        out.drain(start + 1..start + 1 + more);
    }
}

/// What the backend is asked for in place of path and query as they are now; `None`: those stay.
pub(super) fn rewritten(rewrite: &Rewrite, facts: &RequestFacts<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match rewrite {
        Rewrite::Prefix { prefix } => {
            let (site, route) = facts.matched?;
            let cut = match &site.route_config(route)?.matcher {
                // `/api` and `/api/` stand for the folder: what is below it begins with the slash.
                Matcher::Path(path) => path.as_str().strip_suffix('/').unwrap_or(path.as_str()),
                Matcher::Exact(path) | Matcher::Prefix(path) => path,
                Matcher::Regex(_) | Matcher::Named => "",
            };
            let rest = facts.path.strip_prefix(cut.as_bytes()).unwrap_or(facts.path);
            write_written(prefix.as_bytes(), &mut out);
            let rest = if out.ends_with(b"/") { rest.strip_prefix(b"/").unwrap_or(rest) } else { rest };
            write_path(rest, &mut out);
            if has_dot_segments(&out) {
                // `/api../x` of the prefix `/api` would climb out of where `/` leads.
                out.clear();
            }
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
    if let Some(query) = facts.query().filter(|_| !out.contains(&b'?')) {
        out.push(b'?');
        write_query(query, &mut out);
    }
    Some(out)
}
