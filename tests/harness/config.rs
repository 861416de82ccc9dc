//! A configuration as an operator would write it, except for the addresses, which are chosen at run time.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::dns::Dns;
use crate::origin::Origin;

/// Fast probes, for tests of something else; two must fail, since a busy machine may delay one.
const PROBE: &str = "path = \"/probe\"\ninterval = \"250ms\"\ntimeout = \"250ms\"\nrise = 1\nfall = 2";

#[derive(Debug, Clone, Default)]
pub struct Config {
    server: String,
    listener: String,
    admin: String,
    sections: String,
    pools: Vec<Pool>,
    routes: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Pool {
    name: String,
    backends: Vec<String>,
    settings: String,
    sections: String,
}

impl Config {
    /// One pool `app` of these backends, which every request goes to.
    pub fn of<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Self {
        Self::default().pool(Pool::of("app", origins))
    }

    /// Adds lines to `[server]`.
    pub fn server(mut self, lines: &str) -> Self {
        add_line(&mut self.server, lines);
        self
    }

    /// Uses this DNS server, without caching.
    pub fn dns(self, dns: &Dns) -> Self {
        self.resolver(dns, "")
    }

    /// As [`Self::dns`], with further keys of `[server.resolver]`, each behind a comma.
    pub fn resolver(self, dns: &Dns, keys: &str) -> Self {
        let limits = "timeout = \"500ms\", attempts = 1, min_ttl = \"20ms\", max_ttl = \"100ms\"";
        self.server(&format!("resolver = {{ servers = [\"{}\"], {limits}{keys} }}", dns.address()))
    }

    /// Adds lines to `[[listener]]`.
    pub fn listener(mut self, lines: &str) -> Self {
        add_line(&mut self.listener, lines);
        self
    }

    /// Adds lines to `[admin]`.
    pub fn admin(mut self, lines: &str) -> Self {
        add_line(&mut self.admin, lines);
        self
    }

    /// Adds whole sections, with their headings.
    pub fn section(mut self, text: &str) -> Self {
        add_line(&mut self.sections, text);
        self
    }

    pub fn pool(mut self, pool: Pool) -> Self {
        self.pools.push(pool);
        self
    }

    /// Adds a route; without any, every request goes to the first pool.
    pub fn route(mut self, host: &str, path: &str, pool: &str) -> Self {
        let routes = self.routes.get_or_insert_default();
        add_line(routes, &format!("[[route]]\nhost = \"{host}\"\npath = \"{path}\"\npool = \"{pool}\"\n"));
        self
    }

    /// Replaces the routes by `[values]` and `[[site]]` sections, with their headings.
    pub fn sites(mut self, text: &str) -> Self {
        add_line(self.routes.get_or_insert_default(), text);
        self
    }

    /// Changes the first pool.
    pub fn app(mut self, change: impl FnOnce(Pool) -> Pool) -> Self {
        let pool = self.pools.remove(0);
        self.pools.insert(0, change(pool));
        self
    }

    /// Whether a pool has the probes of [`Pool::quick_probe`].
    pub fn is_quickly_probed(&self) -> bool {
        self.pools.iter().any(|pool| pool.sections.contains(PROBE))
    }

    pub fn text(&self, listener: SocketAddr, admin: SocketAddr) -> String {
        let mut text = format!("[server]\nshutdown_timeout = \"20s\"\n{}\n", self.server);
        if self.server.contains("shutdown_timeout") {
            text = format!("[server]\n{}\n", self.server);
        }
        let _ = writeln!(text, "[[listener]]\naddress = \"{listener}\"\n{}", self.listener);
        let _ = writeln!(text, "[admin]\naddress = \"{admin}\"\n{}", self.admin);
        let _ = writeln!(text, "{}", self.sections);
        for pool in &self.pools {
            let _ = writeln!(text, "{}", pool.text());
        }
        match (&self.routes, self.pools.first()) {
            (Some(routes), _) => text.push_str(routes),
            (None, Some(pool)) => {
                let _ = writeln!(text, "[[route]]\npath = \"/\"\npool = \"{}\"", pool.name);
            }
            (None, None) => {}
        }
        text
    }
}

impl Pool {
    pub fn of<'a>(name: &str, origins: impl IntoIterator<Item = &'a Origin>) -> Self {
        origins.into_iter().fold(Self::empty(name), |pool, origin| pool.backend(&origin.address().to_string(), ""))
    }

    pub fn empty(name: &str) -> Self {
        Self { name: name.to_owned(), backends: Vec::new(), settings: String::new(), sections: String::new() }
    }

    /// Adds a backend, with more of its keys, such as `weight = 5`.
    pub fn backend(mut self, address: &str, keys: &str) -> Self {
        let separator = if keys.is_empty() { "" } else { ", " };
        self.backends.push(format!("{{ address = \"{address}\"{separator}{keys} }}"));
        self
    }

    pub fn weighted(self, origin: &Origin, weight: u32) -> Self {
        self.backend(&origin.address().to_string(), &format!("weight = {weight}"))
    }

    pub fn algorithm(self, name: &str) -> Self {
        self.set(&format!("algorithm = \"{name}\""))
    }

    /// Adds lines to `[[pool]]`.
    pub fn set(mut self, lines: &str) -> Self {
        add_line(&mut self.settings, lines);
        self
    }

    pub fn probe(self, lines: &str) -> Self {
        self.section("probe", lines)
    }

    /// HTTP probes of `/probe` every 250 ms.
    pub fn quick_probe(self) -> Self {
        self.probe(PROBE)
    }

    pub fn ejection(self, lines: &str) -> Self {
        self.section("ejection", lines)
    }

    /// Prevents ejections caused by what a test does to its backends.
    pub fn without_ejection(self) -> Self {
        self.ejection("consecutive_failures = 0")
    }

    pub fn sticky(self, lines: &str) -> Self {
        self.section("sticky", lines)
    }

    fn section(mut self, name: &str, lines: &str) -> Self {
        add_line(&mut self.sections, &format!("[pool.{name}]\n{lines}"));
        self
    }

    fn text(&self) -> String {
        let Self { name, backends, settings, sections } = self;
        format!("[[pool]]\nname = \"{name}\"\nbackends = [{}]\n{settings}\n{sections}", backends.join(", "))
    }
}

fn add_line(text: &mut String, lines: &str) {
    text.push_str(lines);
    text.push('\n');
}
