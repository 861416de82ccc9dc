//! Finds the route of a site for a path, by nginx's rules for locations: an exact path; else the longest prefix is
//! remembered and the first matching regex wins, unless the prefix says otherwise; else the prefix. Routes whose
//! conditions do not hold are skipped. A lookup does not allocate.

use crate::value::pattern::{Pattern, Patterns, Sets};

/// The routes of a site, each with its target. Texts are stored contiguously, so that a search among a few touches few
/// cache lines.
#[derive(Debug)]
pub(crate) struct RouteTable<T> {
    texts: Box<[u8]>,
    /// Sorted by text; equal ones in file order.
    exact: Box<[(Span, T)]>,
    /// Sorted by text; of equal ones, the first to be tried is last.
    prefixes: Box<[Prefix<T>]>,
    /// In file order.
    patterns: Patterns<T>,
}

/// The paths that a route matches.
#[derive(Debug, Clone)]
pub(crate) enum PathMatcher {
    Exact(Box<str>),
    /// By whole segments: `/api` covers `/api` and `/api/x`, not `/apix`; `/api/` covers everything below it.
    Segments {
        text: Box<str>,
        over_regex: bool,
    },
    /// Any path with this prefix.
    Prefix {
        text: Box<str>,
        over_regex: bool,
    },
    Matches(Pattern),
}

#[derive(Debug)]
struct Prefix<T> {
    text: Span,
    is_whole_segments: bool,
    /// Whether regexes are skipped if this is the longest match.
    over_regex: bool,
    /// The next shorter prefix of this one, or the next one with the same text.
    shorter: Option<usize>,
    target: T,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    len: usize,
}

impl<T> RouteTable<T> {
    pub(crate) fn new(routes: impl IntoIterator<Item = (PathMatcher, T)>, sets: &mut Sets) -> Self {
        let (mut exact, mut prefixes, mut patterns) = (Vec::new(), Vec::new(), Vec::new());
        for (matcher, target) in routes {
            match matcher {
                PathMatcher::Exact(text) => exact.push((text, target)),
                PathMatcher::Segments { text, over_regex } => prefixes.push((text, true, over_regex, target)),
                PathMatcher::Prefix { text, over_regex } => prefixes.push((text, false, over_regex, target)),
                PathMatcher::Matches(pattern) => patterns.push((pattern, target)),
            }
        }
        let mut texts = Vec::new();
        exact.sort_by(|(one, _), (other, _)| one.cmp(other));
        let exact = exact.into_iter().map(|(text, target)| (Span::of(&text, &mut texts), target)).collect();
        // What is tried first is last: the first in the file, and whole segments before byte prefixes.
        prefixes.reverse();
        prefixes.sort_by(|(one, is_one_whole, ..), (other, is_other_whole, ..)| {
            one.cmp(other).then(is_one_whole.cmp(is_other_whole))
        });
        let prefixes = link(prefixes, &mut texts);
        Self { texts: texts.into(), exact, prefixes, patterns: Patterns::new(patterns, sets) }
    }

    /// The target for `path`, which is decoded and normalised: the best match for which `holds` returns true.
    #[inline]
    pub(crate) fn find(&self, path: &[u8], mut holds: impl FnMut(&T) -> bool) -> Option<&T> {
        if let [only] = &*self.prefixes
            && self.exact.is_empty()
            && self.patterns.is_empty()
        {
            let fits = covers(self.text(only.text), only.is_whole_segments, path) && holds(&only.target);
            return fits.then_some(&only.target);
        }
        if !self.exact.is_empty()
            && let Some(target) = self.exactly(path).find(|target| holds(target))
        {
            return Some(target);
        }
        let longest = self.prefixes_of(path).find(|prefix| holds(&prefix.target));
        if !longest.is_some_and(|prefix| prefix.over_regex)
            && let Some(target) = self.patterns.find(path, holds)
        {
            return Some(target);
        }
        longest.map(|prefix| &prefix.target)
    }

    fn exactly<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = &'a T> {
        let first = self.exact.partition_point(|(text, _)| self.text(*text) < path);
        let from_there = self.exact.get(first..).unwrap_or_default();
        from_there.iter().take_while(move |(text, _)| self.text(*text) == path).map(|(_, target)| target)
    }

    /// The prefixes of `path`, longest first.
    ///
    /// The longest prefix sorts at or before `path`, and all entries between the two begin with it. So it is the last
    /// entry that is not after `path`, or one of that entry's own prefixes.
    #[inline]
    fn prefixes_of<'a>(&'a self, path: &[u8]) -> impl Iterator<Item = &'a Prefix<T>> {
        let next = self.prefixes.partition_point(|prefix| self.text(prefix.text) <= path);
        let last = next.checked_sub(1).and_then(|last| self.prefixes.get(last));
        let shorter = |prefix: &&'a Prefix<T>| self.prefixes.get(prefix.shorter?);
        std::iter::successors(last, shorter).filter(move |prefix| {
            let text = self.text(prefix.text);
            covers(text, prefix.is_whole_segments, path)
        })
    }

    #[inline]
    fn text(&self, span: Span) -> &[u8] {
        self.texts.get(span.start..span.start + span.len).unwrap_or_default()
    }
}

impl PathMatcher {
    /// Whether it matches `path`, regardless of other routes.
    pub(crate) fn covers(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == path,
            Self::Segments { text, .. } => covers(text.as_bytes(), true, path),
            Self::Prefix { text, .. } => covers(text.as_bytes(), false, path),
            Self::Matches(pattern) => pattern.is_match(path),
        }
    }
}

#[inline]
fn covers(prefix: &[u8], is_whole_segments: bool, path: &[u8]) -> bool {
    match path.strip_prefix(prefix) {
        Some(rest) => !is_whole_segments || prefix.ends_with(b"/") || rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    }
}

/// Links each of the sorted prefixes to its next shorter one.
fn link<T>(sorted: Vec<(Box<str>, bool, bool, T)>, texts: &mut Vec<u8>) -> Box<[Prefix<T>]> {
    // The prefixes of the current one, longest last.
    let mut open: Vec<(usize, Box<str>)> = Vec::new();
    let mut linked = Vec::with_capacity(sorted.len());
    for (index, (text, is_whole_segments, over_regex, target)) in sorted.into_iter().enumerate() {
        while open.last().is_some_and(|(_, outer)| !text.starts_with(&**outer)) {
            open.pop();
        }
        let shorter = open.last().map(|(index, _)| *index);
        let span = Span::of(&text, texts);
        linked.push(Prefix { text: span, is_whole_segments, over_regex, shorter, target });
        open.push((index, text));
    }
    linked.into()
}

impl Span {
    fn of(text: &str, texts: &mut Vec<u8>) -> Self {
        let span = Self { start: texts.len(), len: text.len() };
        texts.extend_from_slice(text.as_bytes());
        span
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::value::pattern::Case;

    /// From nginx's notation of locations: `= /x`, `^~ /x`, `~ x`, `/x`; whole segments are `segments /x`.
    fn matcher(text: &str) -> PathMatcher {
        match text.split_once(' ') {
            Some(("=", path)) => PathMatcher::Exact(path.into()),
            Some(("~", pattern)) => PathMatcher::Matches(Pattern::parse(pattern, Case::Sensitive).expect("a regex")),
            Some(("^~", text)) => PathMatcher::Prefix { text: text.into(), over_regex: true },
            Some(("segments", text)) => PathMatcher::Segments { text: text.into(), over_regex: false },
            Some(("^~segments", text)) => PathMatcher::Segments { text: text.into(), over_regex: true },
            _ => PathMatcher::Prefix { text: text.into(), over_regex: false },
        }
    }

    fn table(matchers: &[&str]) -> RouteTable<usize> {
        RouteTable::new(matchers.iter().map(|text| matcher(text)).zip(0..), &mut Sets::default())
    }

    fn find<'a>(matchers: &[&'a str], path: &str) -> Option<&'a str> {
        table(matchers).find(path.as_bytes(), |_| true).map(|&found| matchers[found])
    }

    #[test]
    fn routes_match_exact_then_longest_prefix_unless_a_regex_matches() {
        let matchers = ["/", "/docs/", "^~ /images/", "= /", "= /docs/index.php", "~ \\.php$", "~ x", "/docs/x/"];
        for (path, expected) in [
            ("/", "= /"),
            ("/a", "/"),
            ("/docs", "/"),
            ("/docs/a", "/docs/"),
            ("/docs/index.php", "= /docs/index.php"),
            ("/docs/other.php", "~ \\.php$"),
            ("/docs/x/other.php", "~ \\.php$"),
            ("/docs/x/y", "~ x"),
            ("/images/x.php", "^~ /images/"),
            ("/images", "/"),
        ] {
            assert_eq!(find(&matchers, path), Some(expected), "{path}");
        }
        assert_eq!(find(&["/a"], "/b"), None);
        assert_eq!(find(&["= /a"], "/a/"), None);
        assert_eq!(find(&[], "/"), None);
    }

    #[test]
    fn segment_prefixes_outrank_byte_prefixes() {
        let matchers = ["/api", "segments /api", "segments /api/v2/", "/"];
        for (path, expected) in [
            ("/api", "segments /api"),
            ("/api/", "segments /api"),
            ("/api/v2", "segments /api"),
            ("/api/v2/x", "segments /api/v2/"),
            ("/apix", "/api"),
            ("/ap", "/"),
        ] {
            assert_eq!(find(&matchers, path), Some(expected), "{path}");
        }
    }

    #[test]
    fn when_conditions_fail_the_next_best_route_is_tried_in_file_order() {
        let matchers =
            ["= /a/b", "= /a/b", "segments /a", "~ b", "segments /a", "^~ /a", "/", "~ ^/a", "/a/b/c", "= /a/b/c"];
        let table = table(&matchers);
        let mut asked = Vec::new();
        let found = table.find(b"/a/b", |&index| {
            asked.push(index);
            index == 6
        });
        // The regexes are tried once it is clear that the longest prefix allows them.
        assert_eq!((found, &*asked), (Some(&6), &[0, 1, 2, 4, 5, 6, 3, 7][..]));
        assert_eq!(table.find(b"/a/b", |&index| index >= 5), Some(&5), "it is over the regexes");
        assert_eq!(table.find(b"/a/b", |&index| index == 2 || index == 7), Some(&7));
        assert_eq!(table.find(b"/a/b", |_| false), None);
    }

    /// The rules in plain code, without a table.
    fn reference(matchers: &[PathMatcher], path: &[u8], holds: &dyn Fn(usize) -> bool) -> Option<usize> {
        let fitting: Vec<_> = (0..matchers.len()).filter(|&i| matchers[i].covers(path) && holds(i)).collect();
        if let Some(&exact) = fitting.iter().find(|&&i| matches!(matchers[i], PathMatcher::Exact(_))) {
            return Some(exact);
        }
        let rank = |i: usize| match &matchers[i] {
            PathMatcher::Segments { text, over_regex } => Some((text.len(), true, *over_regex)),
            PathMatcher::Prefix { text, over_regex } => Some((text.len(), false, *over_regex)),
            PathMatcher::Exact(_) | PathMatcher::Matches(_) => None,
        };
        let ranked = fitting.iter().filter_map(|&i| Some((i, rank(i)?)));
        let longest = ranked.max_by_key(|&(i, (len, is_whole, _))| (len, is_whole, std::cmp::Reverse(i)));
        match longest {
            Some((i, (_, _, true))) => Some(i),
            _ => {
                let regex = fitting.iter().find(|&&i| matches!(matchers[i], PathMatcher::Matches(_)));
                regex.copied().or(longest.map(|(i, _)| i))
            }
        }
    }

    proptest! {
        #[test]
        fn finds_what_the_rules_say(
            texts in prop::collection::vec(
                r"(= |\^~ |segments |\^~segments |)/([ab]/?){0,3}|~ \^/[ab]|~ [ab]\$|~ [ab]/[ab]",
                0..12,
            ),
            held in any::<u16>(),
            path in "/([ab]/?){0,5}",
        ) {
            let matchers: Vec<_> = texts.iter().map(|text| matcher(text)).collect();
            let holds = |i: usize| held & 1 << i != 0;
            let found = RouteTable::new(matchers.iter().cloned().zip(0..), &mut Sets::default());
            let found = found.find(path.as_bytes(), |&i| holds(i)).copied();
            prop_assert_eq!(found, reference(&matchers, path.as_bytes(), &holds), "{:?}", texts);
        }
    }
}
