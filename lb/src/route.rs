//! Which pool serves a request: by host, then by the longest path prefix. The table is made once per snapshot;
//! a lookup allocates nothing.

use crate::config::route::{HostPattern, PathPrefix};

/// Routes in the order in which they are tried, each with what it leads to.
#[derive(Debug)]
pub struct RouteTable<T> {
    routes: Vec<(HostPattern, PathPrefix, T)>,
}

impl<T> RouteTable<T> {
    pub fn new(mut routes: Vec<(HostPattern, PathPrefix, T)>) -> Self {
        routes.sort_by_key(|(host, path, _)| std::cmp::Reverse((host.rank(), path.as_str().len())));
        Self { routes }
    }

    /// What serves `path` on `host` (without port, any case).
    pub fn find(&self, host: &str, path: &[u8]) -> Option<&T> {
        let matches =
            |(pattern, prefix, _): &&(HostPattern, PathPrefix, T)| pattern.matches(host) && prefix.matches(path);
        self.routes.iter().find(matches).map(|(_, _, target)| target)
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.routes.iter().map(|(_, _, target)| target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str)]) -> RouteTable<usize> {
        let parse = |(i, (host, path)): (usize, &(&str, &str))| {
            (HostPattern::parse(host).expect("host"), PathPrefix::parse(path).expect("path"), i)
        };
        RouteTable::new(routes.iter().enumerate().map(parse).collect())
    }

    #[test]
    fn longest_prefix_wins_on_whole_segments() {
        let routes = table(&[("", "/"), ("", "/api"), ("", "/api/v2/")]);
        for (path, expected) in [
            ("/", 0),
            ("/apix", 0),
            ("/api", 1),
            ("/api/", 1),
            ("/api/v2", 1),
            ("/api/v2/", 2),
            ("/api/v2/users", 2),
            ("/API", 0),
        ] {
            assert_eq!(routes.find("any.example", path.as_bytes()), Some(&expected), "{path}");
        }
    }

    #[test]
    fn exact_host_beats_domain_beats_any() {
        let routes = table(&[("", "/"), ("*.example.com", "/"), ("*.a.example.com", "/"), ("www.example.com", "/")]);
        for (host, expected) in [
            ("WWW.Example.COM", 3),
            ("x.example.com", 1),
            ("x.a.example.com", 2),
            ("example.com", 0),
            ("badexample.com", 0),
            (".example.com", 0),
            ("", 0),
        ] {
            assert_eq!(routes.find(host, b"/"), Some(&expected), "{host}");
        }
    }

    #[test]
    fn a_host_without_a_matching_path_does_not_fall_back_silently() {
        let routes = table(&[("a.example", "/only"), ("", "/")]);
        assert_eq!(routes.find("a.example", b"/else"), Some(&1));
        let strict = table(&[("a.example", "/only")]);
        assert_eq!(strict.find("a.example", b"/else"), None);
    }
}
