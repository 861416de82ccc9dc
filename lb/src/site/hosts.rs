//! Finds the site for a request's host, by nginx's rules for `server_name`: an exact name, then the longest `*.x`, the
//! longest `x.*`, the regexes in order, and the site for any host. A lookup does not allocate.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::config::route::HostPattern;
use crate::message::authority::without_port;
use crate::value::pattern::Pattern;

/// Host patterns and their sites.
///
/// The keys come from the configuration, so a fast hash function suffices: clients cannot create collisions.
#[derive(Debug)]
pub(crate) struct HostTable<T> {
    exact: Names<T>,
    /// By the domain without `*.`.
    below: Names<T>,
    /// By the prefix without `.*`.
    starting: Names<T>,
    patterns: Vec<(Pattern, T)>,
    any: Option<T>,
}

type Names<T> = HashMap<Box<str>, T, RandomState>;

/// The longest possible host of a request; a longer one matches no name.
const MAX_HOST_BYTES: usize = 255;

impl<T> HostTable<T> {
    /// Of equal patterns, the first one is kept.
    pub(crate) fn new(hosts: impl IntoIterator<Item = (HostPattern, T)>) -> Self {
        let mut table = Self {
            exact: Names::default(),
            below: Names::default(),
            starting: Names::default(),
            patterns: Vec::new(),
            any: None,
        };
        for (host, site) in hosts {
            let (names, name) = match host {
                HostPattern::Exact(name) => (&mut table.exact, name),
                HostPattern::Below(name) => (&mut table.below, name),
                HostPattern::Starting(name) => (&mut table.starting, name),
                HostPattern::Regex(pattern) => {
                    table.patterns.push((pattern, site));
                    continue;
                }
                HostPattern::Any => {
                    table.any.get_or_insert(site);
                    continue;
                }
            };
            names.entry(name.into()).or_insert(site);
        }
        table
    }

    /// The target for `host`, as sent in the request: in any case, with or without port and final dot. Empty: the
    /// request has no host.
    #[inline]
    pub(crate) fn find(&self, host: &str) -> Option<&T> {
        if self.exact.is_empty() && self.below.is_empty() && self.starting.is_empty() && self.patterns.is_empty() {
            return self.any.as_ref();
        }
        self.find_name(host)
    }

    fn find_name(&self, host: &str) -> Option<&T> {
        let mut buffer = [0; MAX_HOST_BYTES];
        let named = lower_case(host, &mut buffer).and_then(|host| {
            let by_name = self.exact.get(host).or_else(|| self.below(host)).or_else(|| self.starting(host));
            by_name.or_else(|| self.matching(host))
        });
        named.or(self.any.as_ref())
    }

    fn below(&self, host: &str) -> Option<&T> {
        if self.below.is_empty() {
            return None;
        }
        // An empty name before the dot does not match.
        dots(host).filter(|&dot| dot > 0).find_map(|dot| self.below.get(host.get(dot + 1..)?))
    }

    fn starting(&self, host: &str) -> Option<&T> {
        if self.starting.is_empty() {
            return None;
        }
        let has_rest = |&dot: &usize| dot + 1 < host.len();
        dots(host).rev().filter(has_rest).find_map(|dot| self.starting.get(host.get(..dot)?))
    }

    fn matching(&self, host: &str) -> Option<&T> {
        let fits = |(pattern, _): &&(Pattern, T)| pattern.is_match(host.as_bytes());
        self.patterns.iter().find(fits).map(|(_, site)| site)
    }
}

/// A host in the form of tables and values: in lower case, without port and final dot. `None` if it is too long for a
/// host.
pub(crate) fn lower_case<'a>(host: &str, buffer: &'a mut [u8; MAX_HOST_BYTES]) -> Option<&'a str> {
    let host = without_port(host);
    let host = host.strip_suffix('.').unwrap_or(host);
    let lower = buffer.get_mut(..host.len())?;
    lower.copy_from_slice(host.as_bytes());
    lower.make_ascii_lowercase();
    std::str::from_utf8(lower).ok()
}

fn dots(host: &str) -> impl DoubleEndedIterator<Item = usize> {
    host.bytes().enumerate().filter(|(_, byte)| *byte == b'.').map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::pattern::Case;

    fn host(text: &str) -> HostPattern {
        match (text.strip_prefix('~'), text.strip_suffix(".*")) {
            (Some(regex), _) => HostPattern::Regex(Pattern::parse(regex, Case::Sensitive).expect("a regex")),
            (None, Some(labels)) => HostPattern::Starting(labels.to_owned()),
            (None, None) => HostPattern::parse(text).expect("a host"),
        }
    }

    fn table(hosts: &[&str]) -> HostTable<usize> {
        HostTable::new(hosts.iter().enumerate().map(|(index, text)| (host(text), index)))
    }

    fn find(table: &HostTable<usize>, host: &str) -> Option<usize> {
        table.find(host).copied()
    }

    #[test]
    fn hosts_match_exact_then_longest_suffix_then_longest_prefix_then_regexes_then_any() {
        let hosts = ["www.a.example", "*.example", "*.a.example", "www.*", "www.b.*", "~^v\\d", "~^v1", ""];
        let table = table(&hosts);
        for (host, expected) in [
            ("www.a.example", "www.a.example"),
            ("x.a.example", "*.a.example"),
            ("x.y.a.example", "*.a.example"),
            ("a.example", "*.example"),
            ("example", ""),
            (".example", ""),
            ("badexample", ""),
            ("www.c.test", "www.*"),
            ("www.b.test", "www.b.*"),
            ("www.b", "www.*"),
            ("www", ""),
            ("www..", ""),
            ("v1.test", "~^v\\d"),
            ("v.test", ""),
            ("", ""),
            ("[::1]", ""),
        ] {
            assert_eq!(find(&table, host).map(|index| hosts[index]), Some(expected), "{host:?}");
        }
    }

    #[test]
    fn case_port_and_final_dot_are_ignored() {
        let table = table(&["shop.example", "*.test", "[::1]", "~^v\\d\\.io$"]);
        for (host, expected) in [
            ("SHOP.Example", 0),
            ("shop.example.", 0),
            ("Shop.example.:8080", 0),
            ("A.TEST.:1", 1),
            ("[::1]:443", 2),
            ("V1.IO.", 3),
        ] {
            assert_eq!(find(&table, host), Some(expected), "{host}");
        }
        assert_eq!(find(&table, "shop.example.."), None);
        assert_eq!(find(&table, &"a".repeat(300)), None);
    }

    #[test]
    fn the_only_site_matches_any_host() {
        assert_eq!(find(&table(&[""]), "x"), Some(0));
        assert_eq!(find(&table(&[]), "x"), None);
    }

    /// nginx's rules, in plain code.
    fn reference(hosts: &[String], host: &str) -> Option<usize> {
        let best = |fits: &dyn Fn(&str) -> bool| {
            let fitting = hosts.iter().enumerate().filter(|(_, pattern)| fits(pattern));
            fitting.max_by_key(|(index, pattern)| (pattern.len(), std::cmp::Reverse(*index))).map(|(index, _)| index)
        };
        best(&|pattern| pattern == host && !pattern.is_empty())
            .or_else(|| best(&|p| p.strip_prefix('*').is_some_and(|end| host.ends_with(end) && host.len() > end.len())))
            .or_else(|| {
                best(&|p| p.strip_suffix('*').is_some_and(|start| host.starts_with(start) && host.len() > start.len()))
            })
            .or_else(|| best(&|pattern| pattern.is_empty()))
    }

    proptest! {
        #[test]
        fn finds_what_the_rules_say(
            hosts in prop::collection::vec(r"|(\*\.)?[ab]{1,2}(\.[ab]{1,2}){0,2}|[ab]{1,2}(\.[ab]){0,2}\.\*", 0..8),
            asked in r"|[ab]{1,2}(\.[ab]{1,2}){0,3}|\.[ab](\.[ab])?",
        ) {
            let texts: Vec<_> = hosts.iter().map(String::as_str).collect();
            prop_assert_eq!(find(&table(&texts), &asked), reference(&hosts, &asked), "{:?} {:?}", hosts, asked);
        }
    }
}
