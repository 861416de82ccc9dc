//! Which settings an embedded balancer applies. Settings that it cannot apply are rejected at the start and by a
//! reload; settings without effect, or with another effect, are logged. A test covers every setting of `default.toml`.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use pingora_core::server::configuration::ServerConf;

use crate::config::advice::Subject;
use crate::config::site::{Action, HeaderEdits, LocationRewrite, RouteConfig, Rules};
use crate::config::transport::ProxyProtocol;
use crate::config::{
    Config, ListenerConfig, ListenerSettings, LogConfig, PoolConfig, PoolSettings, ServerConfig, toml,
};
use crate::control::resources::{ListenerCertificate, PreparedResources, Resources, Unavailable};
use crate::exchange::limits::BackendLimits;
use crate::log::Log;
use crate::value::condition::Condition;

/// The default of Pingora's grace period.
const GRACE_PERIOD: Duration = Duration::from_secs(300);
/// The most fields that Pingora reads in a request.
const MAX_FIELDS: u32 = 256;
const ELSEWHERE: &str = "a Pingora proxy does not do this: remove it, or have Evenkeel's engine carry the requests (App, or `evenkeel run`)";
const OF_HTTP1: &str = "holds for HTTP/1.1 alone: Pingora has no such limit for HTTP/2";
const OF_FIELDS: &str = "is more than Pingora reads, which is 256";
const OF_READS: &str =
    "has no effect: a Pingora proxy waits as long for more of a response as for its head, by response_timeout";

/// A key, and why it has no effect.
type Note = (&'static str, String);

/// The settings that cannot be applied, each with the fix.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

/// The part that serves the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Pingora's proxy.
    Proxy,
    /// The engine.
    Engine,
}

/// The part that serves the requests, and the settings of the Pingora server around it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Host {
    mode: Mode,
    threads: usize,
    grace_period: Duration,
    /// To backends, per thread.
    idle_connections: usize,
    max_retries: usize,
    /// Evenkeel's log goes to the configured file.
    has_log: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Refused {}

impl Host {
    pub(super) fn new(mode: Mode, server: &ServerConf) -> Self {
        Self {
            mode,
            threads: server.threads,
            grace_period: server.grace_period_seconds.map_or(GRACE_PERIOD, Duration::from_secs),
            idle_connections: server.upstream_keepalive_pool_size,
            max_retries: server.max_retries,
            has_log: Log::is_ours(),
        }
    }

    /// Checks the configuration at the start. Logs settings without effect.
    pub(super) fn check(&self, config: &Config) -> Result<(), Refused> {
        let refused = self.refused(config);
        if !refused.is_empty() {
            return Err(Refused(refused.into_iter().map(|problem| problem.message).collect()));
        }
        for warning in self.ignored(config) {
            tracing::warn!("{warning}");
        }
        Ok(())
    }

    /// The settings of a new configuration without effect. `Err`: settings that cannot be changed while the process
    /// runs.
    pub(super) fn check_reload(&self, running: &Config, wanted: &Config) -> Result<Vec<String>, Vec<Unavailable>> {
        let mut problems = self.refused(wanted);
        let addresses = |config: &Config| config.listeners.iter().map(|of| of.addresses.clone()).collect::<Vec<_>>();
        if addresses(running) != addresses(wanted) {
            let message = "the addresses of listeners are bound by the Pingora server, which does that at its start: \
                           keep them as they are, or start it again";
            problems.push(Unavailable { subject: Subject::Listener { listener: 0 }, message: message.to_owned() });
        }
        if problems.is_empty() { Ok(self.ignored(wanted)) } else { Err(problems) }
    }

    /// The settings that cannot be applied.
    fn refused(&self, config: &Config) -> Vec<Unavailable> {
        let mut refused = Vec::new();
        let mut refuse = |subject, message| refused.push(Unavailable { subject, message });
        if config.server.user.is_some() {
            let message = "[server] user: the Pingora server decides which user the process runs as: remove it, and start \
                           the server as that user";
            refuse(Subject::Listener { listener: 0 }, message.to_owned());
        }
        for (listener, of) in config.listeners.iter().enumerate() {
            for (is_there, key) in [(of.tls.is_some(), "tls"), (of.proxy_protocol.is_some(), "proxy_protocol")] {
                if is_there {
                    let message = format!(
                        "[[listener]] {}: {key} is the Pingora server's to do, which accepts the connections: remove it, \
                         and have the service listen so (add_tls), or use `evenkeel run`",
                        of.addresses
                    );
                    refuse(Subject::Listener { listener }, message);
                }
            }
        }
        for (site, of) in config.sites.iter().enumerate() {
            if of.certificate.is_some() {
                let message = format!("site {}: certificate is the Pingora server's to choose: remove it", of.name);
                refuse(Subject::Site { site }, message);
            }
        }
        if self.mode == Mode::Engine {
            return refused;
        }
        let mut refuse = |subject, of: &dyn fmt::Display, keys: Vec<&'static str>| {
            if !keys.is_empty() {
                refuse(subject, format!("{of}: {}: {ELSEWHERE}", keys.join(", ")));
            }
        };
        for (pool, of) in config.pools.iter().enumerate() {
            refuse(Subject::Pool { pool }, &format_args!("pool \"{}\"", of.name), of_transport(of));
        }
        for (site, of) in config.sites.iter().enumerate() {
            let of_site = of_rules(&of.fallback);
            for (route, of) in of.routes.iter().enumerate() {
                // Routes inherit the site's settings, which are reported once.
                let keys = of_route(of).into_iter().filter(|key| !of_site.contains(key)).collect();
                refuse(Subject::RouteOfSite { site, route }, &format_args!("route {}", of.name), keys);
            }
            refuse(Subject::Site { site }, &format_args!("site {}", of.name), of_site);
        }
        let keys = config.access_log.file.iter().map(|_| "file").collect();
        refuse(Subject::AccessLog, &"[access_log]", keys);
        refused
    }

    /// Settings without effect, or with another effect, that differ from their defaults.
    fn ignored(&self, config: &Config) -> Vec<String> {
        let Some(defaults) = defaults() else { return Vec::new() };
        let mut ignored = Vec::new();
        let mut tell = |of: &dyn fmt::Display, notes: Vec<Note>| {
            ignored.extend(notes.into_iter().map(|(key, note)| format!("{of}: {key} {note}")));
        };
        tell(&"[server]", self.of_server(&config.server, &defaults.server));
        if !self.has_log {
            tell(&"[log]", of_log(&config.log, &defaults.log));
        }
        for of in &config.listeners {
            if let Some(defaults) = defaults.listeners.first() {
                tell(&format_args!("[[listener]] {}", of.addresses), self.of_listener(of, defaults));
            }
        }
        if self.mode == Mode::Engine {
            return ignored;
        }
        for of in &config.pools {
            if let Some(defaults) = defaults.pools.first() {
                tell(&format_args!("pool \"{}\"", of.name), self.of_pool(&of.settings, &defaults.settings));
            }
        }
        for site in &config.sites {
            for route in &site.routes {
                tell(&format_args!("route {}", route.name), self.of_limits(route, config));
            }
        }
        ignored
    }

    fn of_server(&self, of: &ServerConfig, defaults: &ServerConfig) -> Vec<Note> {
        let mut notes = Vec::new();
        let mut tell = |is_so: bool, key, note: &dyn fmt::Display| {
            if is_so {
                notes.push((key, note.to_string()));
            }
        };
        let Self { mode, threads, grace_period, idle_connections, .. } = *self;
        tell(
            of.threads != defaults.threads && of.threads != threads,
            "threads",
            &format_args!("has no effect: the Pingora server has {threads}, by threads in its configuration"),
        );
        tell(
            of.shutdown_delay != defaults.shutdown_delay,
            "shutdown_delay",
            &"has no effect: a Pingora server that is stopped accepts no new clients",
        );
        // Pingora sleeps for all of it; the engine ends by its own timeout, but no later.
        let is_other = match mode {
            Mode::Proxy => grace_period.abs_diff(of.shutdown_timeout) >= Duration::from_secs(1),
            Mode::Engine => grace_period < of.shutdown_timeout,
        };
        tell(
            of.shutdown_timeout != defaults.shutdown_timeout && is_other,
            "shutdown_timeout",
            &format_args!(
                "has no effect: the Pingora server stops after {} s, by grace_period_seconds in its configuration",
                grace_period.as_secs()
            ),
        );
        tell(
            of.max_handshakes != defaults.max_handshakes,
            "max_handshakes",
            &"has no effect: the Pingora server makes the handshakes, any number of them",
        );
        if mode == Mode::Proxy {
            tell(
                of.max_connections != defaults.max_connections,
                "max_connections",
                &"has no effect: Pingora accepts all clients",
            );
            let kept = idle_connections.saturating_mul(threads);
            tell(
                of.idle_connections != defaults.idle_connections
                    && of.idle_connections.div_ceil(threads.max(1)) != idle_connections,
                "idle_connections",
                &format_args!(
                    "has no effect: the Pingora server keeps {kept}, by upstream_keepalive_pool_size, for each thread, in its \
                     configuration"
                ),
            );
        }
        notes
    }

    fn of_listener(&self, of: &ListenerConfig, defaults: &ListenerConfig) -> Vec<Note> {
        // Lists every field, so that a new one is not forgotten.
        let ListenerSettings {
            keepalive_timeout,
            header_timeout,
            body_timeout,
            send_timeout: _,
            lingering_time: _,
            lingering_timeout,
            min_rate,
            half_close: _,
            h2c,
            ambiguous_names: _,
            non_ascii_targets: _,
            max_request_line_bytes: _,
            max_head_bytes: _,
            max_fields,
            max_body_bytes: _,
        } = of.settings;
        let defaults = &defaults.settings;
        let owner = of.socket_file.as_ref().and_then(|rights| rights.owner.as_ref());
        let mut notes = Vec::new();
        let mut tell = |is_so: bool, key, note: &str| {
            if is_so {
                notes.push((key, note.to_owned()));
            }
        };
        tell(owner.is_some(), "owner", "has no effect: the socket's file belongs to the user of the Pingora server");
        if self.mode == Mode::Engine {
            return notes;
        }
        let of_http1 = "holds for HTTP/1.1, in whole seconds; for HTTP/2 it is for the service to say: set h2_idle_timeout of its \
                        HttpServerOptions";
        tell(keepalive_timeout != defaults.keepalive_timeout, "keepalive_timeout", of_http1);
        tell(body_timeout != defaults.body_timeout, "body_timeout", OF_HTTP1);
        tell(
            header_timeout != defaults.header_timeout,
            "header_timeout",
            "has no effect: Pingora limits each read of a head, to 60 s, and not the whole",
        );
        tell(
            lingering_timeout != defaults.lingering_timeout,
            "lingering_timeout",
            "has no effect: lingering_time alone holds",
        );
        tell(min_rate != defaults.min_rate, "min_rate", "has no effect: Pingora takes clients however slow they are");
        tell(
            h2c != defaults.h2c,
            "h2c",
            "is for the service to say: set h2c of its HttpServerOptions, which is off by default",
        );
        tell(max_fields > MAX_FIELDS, "max_fields", OF_FIELDS);
        notes
    }

    fn of_pool(&self, of: &PoolSettings, defaults: &PoolSettings) -> Vec<Note> {
        let mut notes = self.of_retries(of.retries);
        if of.continue_timeout != defaults.continue_timeout {
            notes.push((
                "continue_timeout",
                "has no effect: a Pingora proxy leaves it to the backend to ask for the body".to_owned(),
            ));
        }
        notes.extend((of.read_timeout != of.response_timeout).then(|| ("read_timeout", OF_READS.to_owned())));
        notes.extend((of.max_fields > MAX_FIELDS).then(|| ("max_fields", OF_FIELDS.to_owned())));
        notes
    }

    /// A route's overrides of its listener's and pool's settings.
    fn of_limits(&self, route: &RouteConfig, config: &Config) -> Vec<Note> {
        let (client, backend) = (&route.rules.client, &route.rules.backend);
        let mut notes = backend.retries.map(|retries| self.of_retries(retries)).unwrap_or_default();
        notes.extend(client.body_timeout.map(|_| ("body_timeout", OF_HTTP1.to_owned())));
        let pool = route.pools().first().and_then(|name| config.pools.iter().find(|pool| pool.name == *name));
        let limits = pool.map(|pool| BackendLimits::of_pool(&pool.settings).with(backend));
        let is_own = backend.read_timeout.is_some() || backend.response_timeout.is_some();
        if is_own && limits.is_some_and(|limits| limits.read_timeout != limits.response_timeout) {
            notes.push(("read_timeout", OF_READS.to_owned()));
        }
        notes
    }

    fn of_retries(&self, retries: usize) -> Vec<Note> {
        // Each attempt may follow one on a stale connection.
        let wanted = 2 * retries + 1;
        if self.max_retries >= wanted {
            return Vec::new();
        }
        let note = format!(
            "may not all be made: the Pingora server ends a request after {} of them, those on stale connections \
             included: set max_retries in its configuration to {wanted}",
            self.max_retries
        );
        vec![("retries", note)]
    }
}

/// Rejects reloads with settings that a Pingora proxy cannot apply.
pub(super) struct ProxyResources(pub Host);

impl Resources for ProxyResources {
    fn prepare(&self, running: &Config, wanted: &Config, _: bool) -> Result<PreparedResources, Vec<Unavailable>> {
        let warnings = self.0.check_reload(running, wanted)?;
        Ok(PreparedResources { changes: Vec::new(), warnings, commit: Box::new(|put_in_force| put_in_force()) })
    }

    fn certificates(&self) -> Vec<ListenerCertificate> {
        Vec::new()
    }
}

fn of_transport(pool: &PoolConfig) -> Vec<&'static str> {
    let transport = &pool.settings.transport;
    asked([(transport.tls.is_some(), "tls"), (transport.proxy_protocol != ProxyProtocol::Off, "proxy_protocol")])
}

/// The settings of a route that cannot be applied.
fn of_route(route: &RouteConfig) -> Vec<&'static str> {
    let mut keys = match &route.action {
        Action::Pool(_) => Vec::new(),
        Action::PoolFrom(_) => vec!["pool_from"],
        Action::Respond(_) => vec!["respond"],
        Action::Redirect(_) => vec!["redirect"],
        Action::Jump(_) => vec!["jump"],
    };
    if let Some(Condition { methods, networks, tests }) = &route.condition {
        keys.extend(asked([
            (methods.is_some(), "methods"),
            (networks.is_some(), "networks"),
            (!tests.is_empty(), "when"),
        ]));
    }
    keys.extend(asked([(route.internal, "internal")]));
    keys.extend(of_rules(&route.rules));
    keys
}

fn of_rules(rules: &Rules) -> Vec<&'static str> {
    // Lists every field, so that a new one is not forgotten.
    let Rules {
        rewrite,
        request_headers: HeaderEdits { host, changes },
        response_headers,
        preset,
        error_pages,
        intercept_errors,
        cors,
        location,
        cookies,
        client,
        backend: _,
        access_log,
        origins: _,
    } = rules;
    asked([
        (rewrite.is_some(), "rewrite"),
        (host.is_some() || !changes.is_empty(), "request_headers"),
        (!response_headers.is_empty(), "response_headers"),
        (preset.is_some(), "preset"),
        (!error_pages.is_empty(), "error_pages"),
        (*intercept_errors, "intercept_errors"),
        (cors.is_some(), "cors"),
        // Without a rewrite, and with the client's own Host, "auto" changes nothing.
        (matches!(location, LocationRewrite::Pairs(_)), "location"),
        (*cookies != Rules::default().cookies, "cookies"),
        (client.min_rate.is_some(), "min_rate"),
        // An empty list is "off".
        (access_log.as_ref().is_some_and(|logs| !logs.is_empty()), "access_log"),
    ])
}

fn asked<const N: usize>(keys: [(bool, &'static str); N]) -> Vec<&'static str> {
    keys.into_iter().filter_map(|(is_asked, key)| is_asked.then_some(key)).collect()
}

/// The author of the server decides where its log goes.
fn of_log(of: &LogConfig, defaults: &LogConfig) -> Vec<Note> {
    let keys = [
        (of.file != defaults.file, "file"),
        (of.level != defaults.level, "level"),
        (of.format != defaults.format, "format"),
    ];
    let note = "has no effect: the program has a log of its own, or none: have it start that of evenkeel::log::Log";
    asked(keys).into_iter().map(|key| (key, note.to_owned())).collect()
}

/// The default configuration.
fn defaults() -> Option<Config> {
    let text =
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[pool]]\nname = \"app\"\nbackends = []\n[[route]]\npool = \"app\"\n";
    toml::read(text, Path::new("/evenkeel.toml")).ok()
}

#[cfg(test)]
mod tests;
