//! Finds parts of sites that no request can reach, as far as hosts, matchers and methods tell. Routes hidden by an
//! earlier route with the same path are refused when the file is read.

use std::sync::Arc;

use super::path_matcher;
use super::routes::RouteTable;
use crate::config::Config;
use crate::config::advice::{Advice, Subject};
use crate::config::route::HostPattern;
use crate::config::site::{Action, JumpTo, Matcher, Page, RouteConfig, SiteConfig};
use crate::config::toml::Checked;
use crate::message::path::normalise;
use crate::value::condition::Condition;
use crate::value::pattern::Sets;

/// Regexes that match every path.
const MATCHES_ANY_PATH: &[&str] =
    &["", ".", ".*", "/", "^", "^.", "^.*", "^/", "^/.*", "^/.*$", "^.*$", "^(.*)$", "^/(.*)$", "(.*)"];

/// Regexes that match every host.
const MATCHES_ANY_HOST: &[&str] = &["", ".", ".*", ".+", "^", "^.", "^.*", "^.+", "^.*$", "^.+$", "^(.*)$", "^(.+)$"];

/// Adds warnings about unreachable parts.
pub(crate) fn tell(checked: &mut Checked) {
    checked.advise(of(&checked.config));
}

/// Unreachable parts, and loops of jumps.
fn of(config: &Config) -> Vec<Advice> {
    let mut advice = Vec::new();
    for (site, settings) in config.sites.iter().enumerate() {
        for (route, message) in routes(settings) {
            advice.push(Advice { subject: Subject::RouteOfSite { site, route }, is_error: false, message });
        }
        for (route, message) in circles(settings) {
            advice.push(Advice { subject: Subject::RouteOfSite { site, route }, is_error: true, message });
        }
    }
    hosts(config, &mut advice);
    advice
}

/// Hosts that no request can reach their site by.
fn hosts(config: &Config, advice: &mut Vec<Advice>) {
    let all = config.all_sites();
    let first = all.len() - config.sites.len();
    for (index, site) in all.iter().enumerate().skip(first) {
        let others = || all.iter().enumerate().filter(|(other, _)| *other != index);
        for host in &site.hosts {
            let HostPattern::Regex(regex) = host else { continue };
            let (start, end) = (literal_host_start(regex.text()), literal_host_end(regex.text()));
            let hides = |other: usize, above: &HostPattern| match above {
                HostPattern::Below(domain) => end.strip_suffix(domain.as_str()).is_some_and(|rest| rest.ends_with('.')),
                HostPattern::Starting(labels) => {
                    start.strip_prefix(labels.as_str()).is_some_and(|rest| rest.starts_with('.'))
                }
                HostPattern::Regex(regex) => other < index && MATCHES_ANY_HOST.contains(&regex.text()),
                HostPattern::Exact(_) | HostPattern::Any => false,
            };
            let hiding = others().filter(|(_, other)| is_wherever(other, site)).find_map(|(index, other)| {
                other.hosts.iter().find(|above| hides(index, above)).map(|above| (other, above))
            });
            if let Some((other, above)) = hiding {
                let message = format!(
                    "no request reaches the site by the host \"{host}\", since \"{above}\" of the site {} ({}) takes precedence: write the names without a regex, or make that one narrower",
                    other.name, other.defined_at
                );
                advice.push(Advice { subject: Subject::Site { site: index - first }, is_error: false, message });
            }
        }
    }
}

/// Whether a site is on all listeners of another one.
fn is_wherever(site: &Arc<SiteConfig>, other: &SiteConfig) -> bool {
    site.listeners.is_empty()
        || !other.listeners.is_empty() && other.listeners.iter().all(|listener| site.listeners.contains(listener))
}

/// A literal prefix of every host that a regex matches, as far as is easy to see.
fn literal_host_start(regex: &str) -> String {
    let mut start = String::new();
    let Some(rest) = regex.strip_prefix('^').filter(|rest| !rest.contains('|')) else { return start };
    let mut chars = rest.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next_if_eq(&'.').is_some() => start.push('.'),
            c if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' => start.push(c),
            '*' | '?' | '{' => {
                start.pop();
                break;
            }
            _ => break,
        }
    }
    start
}

/// Like [`literal_host_start`], for a suffix.
fn literal_host_end(regex: &str) -> String {
    let Some(rest) = regex.strip_suffix('$').filter(|_| !has_alternatives(regex)) else { return String::new() };
    let mut end = Vec::new();
    let mut chars = rest.chars().rev().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.next_if_eq(&'\\').is_some()) {
            ('.', true) => end.push('.'),
            (c, false) if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' => end.push(c),
            _ => break,
        }
    }
    end.into_iter().rev().collect()
}

/// Whether a regex has alternatives outside of groups.
fn has_alternatives(regex: &str) -> bool {
    let mut depth = 0_usize;
    regex.chars().any(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == '|' && depth == 0
    })
}

/// Unreachable routes by index, each with the reason and the fix.
fn routes(site: &SiteConfig) -> Vec<(usize, String)> {
    let jumps: Vec<&JumpTo> = jumps(site).collect();
    let of_any = site.routes.iter().position(|route| is_open(route) && is_of_any(&route.matcher));
    let advice = site.routes.iter().enumerate().filter_map(|(index, route)| {
        let why = by_methods(&site.routes[..index], route)
            .or_else(|| by_paths(site, index, route))
            .or_else(|| by_regex(of_any.filter(|any| *any != index), site, index, route))
            .or_else(|| over_regex(site, route))
            .or_else(|| without_jump(&jumps, route))?;
        Some((index, format!("no request can reach this route, {why}")))
    });
    advice.collect()
}

/// Loops of jumps by name, and by paths that do not depend on the request: the first route of each, with the reason and
/// the fix.
fn circles(site: &SiteConfig) -> Vec<(usize, String)> {
    let is_jump = |route: &RouteConfig| matches!(route.action, Action::Jump(_));
    if !site.routes.iter().any(is_jump) {
        return Vec::new();
    }
    let matchers = site.routes.iter().enumerate().filter_map(|(at, route)| Some((path_matcher(route)?, at)));
    let table = RouteTable::new(matchers, &mut Sets::default());
    let next = |index: usize| match &site.routes.get(index)?.action {
        Action::Jump(JumpTo::Route(name)) => site.routes.iter().position(|route| route.name == *name),
        Action::Jump(JumpTo::Path(path)) => {
            let path = path.as_constant()?;
            let end = path.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(path.len());
            let mut scratch = Vec::new();
            let found = table.find(normalise(&path[..end], &mut scratch).ok()?, |_| true).copied();
            // If a condition fails, another route matches.
            found.filter(|found| site.routes.get(*found).is_some_and(is_open))
        }
        _ => None,
    };
    let advice = (0..site.routes.len()).filter_map(|first| {
        let mut circle = vec![first];
        let mut at = first;
        loop {
            at = next(at)?;
            match at {
                _ if at == first => break,
                // It is reported for its first route.
                _ if at < first || circle.contains(&at) => return None,
                _ => circle.push(at),
            }
        }
        let names: Vec<_> = circle.iter().chain([&first]).map(|index| site.routes[*index].name.as_str()).collect();
        let message = format!(
            "jumps form a loop ({}), and requests in it are answered with 500: change the target of one of them",
            names.join(" → ")
        );
        Some((first, message))
    });
    advice.collect()
}

/// Whether it matches every request for its paths.
fn is_open(route: &RouteConfig) -> bool {
    route.condition.as_ref().is_none_or(Condition::is_empty)
}

/// Earlier routes with the same path match all of its methods.
fn by_methods(before: &[RouteConfig], route: &RouteConfig) -> Option<String> {
    let methods = route.condition.as_ref()?.methods.as_ref()?;
    let takes_all = |above: &&RouteConfig| {
        let condition = above.condition.as_ref();
        above.matcher == route.matcher
            && route.matcher != Matcher::Named
            && condition.is_some_and(|above| above.networks.is_none() && above.tests.is_empty())
            && condition
                .and_then(|above| above.methods.as_ref())
                .is_some_and(|above| methods.iter().all(|method| above.contains(method.as_bytes())))
    };
    let above = before.iter().find(takes_all)?;
    Some(format!("since {} takes its methods for the same path: write this one before it", at(above)))
}

/// Other routes match everything that it covers.
fn by_paths(site: &SiteConfig, index: usize, route: &RouteConfig) -> Option<String> {
    let others = || site.routes.iter().enumerate().filter(move |(other, _)| *other != index).map(|(_, other)| other);
    let open_path = |text: &str| {
        others().find(|other| is_open(other) && matches!(&other.matcher, Matcher::Path(path) if path.as_str() == text))
    };
    match &route.matcher {
        Matcher::Prefix(text) if text.ends_with('/') => {
            let path = open_path(text)?;
            Some(format!(
                "since {} takes the same paths and whole segments take precedence: remove one of them",
                at(path)
            ))
        }
        Matcher::Path(path) if !path.as_str().ends_with('/') => {
            let is_exact = |other: &&RouteConfig| {
                is_open(other) && matches!(&other.matcher, Matcher::Exact(text) if text == path.as_str())
            };
            let (exact, below) = (others().find(is_exact)?, open_path(&format!("{}/", path.as_str()))?);
            Some(format!("since {} and {} take all of its paths: remove it, or one of those", at(exact), at(below)))
        }
        _ => None,
    }
}

/// A regex matches every path before this route is tried.
fn by_regex(of_any: Option<usize>, site: &SiteConfig, index: usize, route: &RouteConfig) -> Option<String> {
    let of_any = of_any?;
    let loses = match &route.matcher {
        Matcher::Regex(_) => of_any < index,
        // A route that outranks regexes may be the longest match where this one is not.
        Matcher::Path(_) | Matcher::Prefix(_) => !route.over_regex,
        Matcher::Exact(_) | Matcher::Named => false,
    };
    let any = at(site.routes.get(of_any)?);
    loses.then(|| format!("since the regex of {any} fits every path: make it narrower, or write path = \"/\" there"))
}

/// A regex that is never tried, since the longest prefix always outranks it.
fn over_regex(site: &SiteConfig, route: &RouteConfig) -> Option<String> {
    let Matcher::Regex(regex) = &route.matcher else { return None };
    let start = literal_start(regex.text());
    let prefix_of = |route: &'_ RouteConfig| match &route.matcher {
        Matcher::Path(path) if path.as_str().ends_with('/') => Some(path.as_str().to_owned()),
        Matcher::Path(path) => Some(format!("{}/", path.as_str())),
        Matcher::Prefix(text) => Some(text.clone()),
        Matcher::Exact(_) | Matcher::Regex(_) | Matcher::Named => None,
    };
    let hides = |above: &&RouteConfig| {
        let Some(prefix) = prefix_of(above).filter(|prefix| start.starts_with(prefix.as_str())) else { return false };
        let lets = |other: &RouteConfig| {
            !other.over_regex
                && prefix_of(other).is_some_and(|longer| longer.len() >= prefix.len() && longer.starts_with(&prefix))
        };
        above.over_regex && is_open(above) && !site.routes.iter().any(lets)
    };
    let above = site.routes.iter().find(hides)?;
    Some(format!("since {} with over_regex outranks regexes for its paths: remove one of them", at(above)))
}

/// No jump leads to it, by name or by path.
fn without_jump(jumps: &[&JumpTo], route: &RouteConfig) -> Option<String> {
    let is_named = jumps.iter().any(|to| matches!(to, JumpTo::Route(name) if *name == route.name));
    let to_path = jumps.iter().any(|to| matches!(to, JumpTo::Path(_)));
    let is_lost = match &route.matcher {
        Matcher::Named => !is_named,
        _ => route.internal && !is_named && !to_path,
    };
    is_lost
        .then(|| "since no jump and no error page of its site leads there: write one, or remove the route".to_owned())
}

fn jumps(site: &SiteConfig) -> impl Iterator<Item = &JumpTo> {
    let by_action = site.routes.iter().filter_map(|route| match &route.action {
        Action::Jump(to) => Some(to),
        _ => None,
    });
    let rules = site.routes.iter().map(|route| &route.rules).chain([&site.fallback]);
    let by_page = rules.flat_map(|rules| &rules.error_pages).filter_map(|page| match &page.page {
        Page::Jump(to) => Some(to),
        _ => None,
    });
    by_action.chain(by_page)
}

fn is_of_any(matcher: &Matcher) -> bool {
    matches!(matcher, Matcher::Regex(regex) if MATCHES_ANY_PATH.contains(&regex.text()))
}

/// A literal prefix of every path that a regex matches, as far as is easy to see.
fn literal_start(regex: &str) -> String {
    let Some(rest) = regex.strip_prefix('^').filter(|rest| !rest.contains('|')) else { return "/".to_owned() };
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"/-_".contains(c)).unwrap_or(rest.len());
    // A repeated character may be missing.
    let end = if rest[end..].starts_with(['*', '?', '{']) { end.saturating_sub(1) } else { end };
    if end == 0 { "/".to_owned() } else { rest[..end].to_owned() }
}

fn at(route: &RouteConfig) -> String {
    format!("the route {} (line {})", route.name, route.defined_at.line)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::advice::Subject;
    use crate::config::toml;

    /// The indices of the routes that are reported.
    fn reported(routes: &[&str]) -> Vec<usize> {
        let routes: String =
            routes.iter().map(|lines| format!("[[site.route]]\n{}\n", lines.replace("; ", "\n"))).collect();
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[pool]]\nname = \"app\"\nbackends = [\"a:1\"]\n\
             [[site]]\nhosts = [\"\"]\n{routes}"
        );
        let config = toml::read(&text, Path::new("/evenkeel.toml")).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
        super::routes(&config.sites[0]).into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn hosts_hidden_by_others_are_reported() {
        let reported = |sites: &[&str]| {
            let mut text = "[[listener]]\naddress = \"127.0.0.1:0\"\nname = \"a\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nname = \"b\"\n".to_owned();
            for site in sites {
                text += &format!("[[site]]\n{}\nrespond = {{}}\n", site.replace("; ", "\n"));
            }
            let config = toml::read(&text, Path::new("/evenkeel.toml")).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
            let mut reported = Vec::new();
            super::hosts(&config, &mut reported);
            reported.into_iter().map(|advice| advice.subject).collect::<Vec<_>>()
        };
        let site = |site| Subject::Site { site };
        for (sites, expected) in [
            (&["hosts = ['~^s[0-9]+\\.shop\\.example$']", "hosts = [\"*.shop.example\"]"][..], &[site(0)][..]),
            (&["hosts = ['~^(a|b)\\.shop\\.example$']", "hosts = [\"*.example\"]"], &[site(0)]),
            (&["hosts = ['~^a|\\.shop\\.example$']", "hosts = [\"*.example\"]"], &[]),
            (&["hosts = ['~\\.shop\\.example']", "hosts = [\"*.shop.example\"]"], &[]),
            (&["hosts = ['~\\dshop\\.example$']", "hosts = [\"*.shop.example\"]"], &[]),
            (&["hosts = ['~shop\\.example$']", "hosts = [\"*.shop.example\"]"], &[]),
            (&["hosts = ['~^www\\.[a-z]+$']", "hosts = [\"www.*\"]"], &[site(0)]),
            (&["hosts = ['~^www?\\.']", "hosts = [\"www.*\"]"], &[]),
            (&["hosts = [\"~.*\"]", "hosts = [\"~^a\", \"b.example\"]"], &[site(1)]),
            (&["hosts = [\"~^a\"]", "hosts = [\"~.*\"]"], &[]),
            (
                &["hosts = ['~\\.a\\.example$']; listeners = [\"a\"]", "hosts = [\"*.example\"]; listeners = [\"b\"]"],
                &[],
            ),
            (&["hosts = ['~\\.a\\.example$']; listeners = [\"a\"]", "hosts = [\"*.example\"]"], &[site(0)]),
            (&["hosts = ['~\\.a\\.example$', \"*.example\"]"], &[]),
        ] {
            assert_eq!(reported(sites), expected, "{sites:?}");
        }
    }

    #[test]
    fn loops_of_jumps_are_reported_once() {
        for (routes, expected) in [
            (&["path = \"/\"; jump = \"/\""][..], &[0][..]),
            (&["path = \"/\"; jump = \"a\"", "name = \"a\"; jump = \"b\"", "name = \"b\"; jump = \"a\""], &[1]),
            (&["path = \"/a\"; jump = \"/b/x?y\"", "path = \"/b\"; jump = \"/a\""], &[0]),
            (&["path = \"/a\"; jump = \"/b\"", "path = \"/b\"; pool = \"app\""], &[]),
            (&["path = \"/a\"; jump = \"/a/$host\""], &[]),
            (&["path = \"/a\"; methods = [\"GET\"]; jump = \"/a/b\"", "path = \"/a\"; pool = \"app\""], &[]),
        ] {
            let lines: String =
                routes.iter().map(|lines| format!("[[site.route]]\n{}\n", lines.replace("; ", "\n"))).collect();
            let text = format!(
                "[[listener]]\naddress = \"127.0.0.1:0\"\n[[pool]]\nname = \"app\"\nbackends = [\"a:1\"]\n\
                 [[site]]\nhosts = [\"\"]\n{lines}"
            );
            let config = toml::read(&text, Path::new("/evenkeel.toml")).unwrap_or_else(|e| panic!("{e:?}\n{text}"));
            let reported: Vec<_> = super::circles(&config.sites[0]).into_iter().map(|(index, _)| index).collect();
            assert_eq!(reported, expected, "{routes:?}");
        }
    }

    #[test]
    fn only_hidden_routes_are_reported() {
        let any = "path = \"/\"; pool = \"app\"";
        for (routes, expected) in [
            // Methods.
            (
                &[
                    "path = \"/a\"; methods = [\"GET\", \"PUT\"]; pool = \"app\"",
                    "path = \"/a\"; methods = [\"PUT\"]; pool = \"app\"",
                ][..],
                &[1][..],
            ),
            (
                &[
                    "path = \"/a\"; methods = [\"GET\"]; pool = \"app\"",
                    "path = \"/a\"; methods = [\"PUT\"]; pool = \"app\"",
                ],
                &[],
            ),
            // The same paths in another notation.
            (&["prefix = \"/a/\"; pool = \"app\"", "path = \"/a/\"; pool = \"app\""], &[0]),
            (&["prefix = \"/a\"; pool = \"app\"", "path = \"/a\"; pool = \"app\""], &[]),
            (
                &["path = \"/a\"; pool = \"app\"", "exact = \"/a\"; pool = \"app\"", "path = \"/a/\"; pool = \"app\""],
                &[0],
            ),
            (&["path = \"/a\"; pool = \"app\"", "path = \"/a/\"; pool = \"app\""], &[]),
            // Regexes that match everything.
            (
                &[any, "regex = '^/'; pool = \"app\"", "regex = 'x'; pool = \"app\"", "exact = \"/a\"; pool = \"app\""],
                &[0, 2],
            ),
            (&["regex = 'x'; pool = \"app\"", "regex = '.*'; methods = [\"GET\"]; pool = \"app\"", any], &[]),
            // Routes that outrank regexes.
            (&["path = \"/\"; over_regex = true; pool = \"app\"", "regex = 'x$'; pool = \"app\""], &[1]),
            (
                &[
                    "path = \"/\"; over_regex = true; pool = \"app\"",
                    "path = \"/a\"; pool = \"app\"",
                    "regex = 'x$'; pool = \"app\"",
                ],
                &[],
            ),
            (
                &[
                    any,
                    "path = \"/a\"; over_regex = true; pool = \"app\"",
                    "regex = '^/a/b?c'; pool = \"app\"",
                    "regex = '^/ab'; pool = \"app\"",
                ],
                &[2],
            ),
            (&[any, "path = \"/a\"; over_regex = true; pool = \"app\"", "regex = '^/a/|x'; pool = \"app\""], &[]),
            // Jumps.
            (&[any, "name = \"page\"; pool = \"app\"", "path = \"/in\"; internal = true; pool = \"app\""], &[1, 2]),
            (&["path = \"/\"; jump = \"/in\"", "path = \"/in\"; internal = true; pool = \"app\""], &[]),
        ] {
            assert_eq!(reported(routes), expected, "{routes:?}");
        }
    }
}
