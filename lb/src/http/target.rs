//! Request targets built from values, in the encoding of [`crate::value::encode`].

use super::facts::RequestFacts;
use crate::config::site::{Matcher, Rewrite};
use crate::message::path::normalise;
use crate::site::RouteId;
use crate::value::encode::{has_dot_segments, write_path, write_query, write_written};
use crate::value::{Facts, Presence, Value};

/// Appends `value` as path and query; `/` if it is not a valid target.
pub(super) fn write(value: &Value, facts: &impl Facts, out: &mut Vec<u8>) {
    if value.write_target(facts, out) == Presence::Missing {
        out.push(b'/');
    }
}

/// Whether the configuration itself, and not the client, chose this route as the target of a jump: the fixed text
/// before the first variable must already be within the route's path. Otherwise a client could choose an internal
/// route.
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

/// Removes all but one leading slash: a target that begins with `//`, or for browsers with `/\`, names another host.
pub(super) fn keep_on_host(out: &mut Vec<u8>, start: usize) {
    if out.get(start) == Some(&b'/') {
        let more = out[start + 1..].iter().take_while(|byte| matches!(byte, b'/' | b'\\')).count();
        out.drain(start + 1..start + 1 + more);
    }
}

/// The rewritten path and query for the backend; `None`: they stay unchanged.
pub(super) fn rewritten(rewrite: &Rewrite, facts: &RequestFacts<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match rewrite {
        Rewrite::Prefix { prefix } => {
            let (site, route) = facts.matched?;
            let cut = match &site.route_config(route)?.matcher {
                // `/api` and `/api/` stand for the same folder; the rest of the path begins with the slash.
                Matcher::Path(path) => path.as_str().strip_suffix('/').unwrap_or(path.as_str()),
                Matcher::Exact(path) | Matcher::Prefix(path) => path,
                Matcher::Regex(_) | Matcher::Named => "",
            };
            let rest = facts.path.strip_prefix(cut.as_bytes()).unwrap_or(facts.path);
            write_written(prefix.as_bytes(), &mut out);
            let rest = if out.ends_with(b"/") { rest.strip_prefix(b"/").unwrap_or(rest) } else { rest };
            write_path(rest, &mut out);
            if has_dot_segments(&out) {
                // With the prefix `/api`, the path `/api../x` would leave the folder that replaces it.
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
