//! What of a configuration an embedded balancer takes up. What it cannot do is refused at the start and by a reload; what
//! is Pingora's to do there has no effect, which is said.

use std::fmt;
use std::path::Path;

use crate::config::advice::Subject;
use crate::config::site::{Action, HeaderEdits, RouteConfig, Rules};
use crate::config::transport::ProxyProtocol;
use crate::config::{Config, ListenerConfig, ListenerSettings, PoolConfig, ServerConfig, toml};
use crate::control::resources::{ListenerCertificate, Obtained, Resources, Unavailable};

/// What a configuration asks for that cannot be had, each with the fix.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Refused {}

/// What carries the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Pingora's proxy.
    Proxy,
    /// The engine.
    Engine,
}

/// Checks what is configured at the start; what has no effect is logged.
pub fn check(config: &Config, by: By) -> Result<(), Refused> {
    let refused = refused(config, by);
    if !refused.is_empty() {
        return Err(Refused(refused.into_iter().map(|problem| problem.message).collect()));
    }
    for warning in ignored(config, by) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// Holds reloads to what a Pingora proxy can do.
pub struct OfProxy;

impl Resources for OfProxy {
    fn prepare(&self, running: &Config, wanted: &Config, _: bool) -> Result<Obtained, Vec<Unavailable>> {
        let warnings = held(running, wanted, By::Proxy)?;
        Ok(Obtained { changes: Vec::new(), warnings, commit: Box::new(|put_in_force| put_in_force()) })
    }

    fn certificates(&self) -> Vec<ListenerCertificate> {
        Vec::new()
    }
}

/// What of a new configuration has no effect. `Err`: what cannot be had while the process runs.
pub fn held(running: &Config, wanted: &Config, by: By) -> Result<Vec<String>, Vec<Unavailable>> {
    let mut problems = refused(wanted, by);
    let addresses = |config: &Config| config.listeners.iter().map(|of| of.addresses.clone()).collect::<Vec<_>>();
    if addresses(running) != addresses(wanted) {
        let message = "the addresses of listeners are bound by the Pingora server, which does that at its start: \
                       keep them as they are, or start it again";
        problems.push(Unavailable { subject: Subject::Listener { listener: 0 }, message: message.to_owned() });
    }
    if problems.is_empty() { Ok(ignored(wanted, by)) } else { Err(problems) }
}

/// What cannot be done.
fn refused(config: &Config, by: By) -> Vec<Unavailable> {
    let mut refused = Vec::new();
    if config.server.user.is_some() {
        let message = "[server] user: whom the process becomes is the Pingora server's to say: remove it, and start the \
                       server as that user";
        refused.push(Unavailable { subject: Subject::Listener { listener: 0 }, message: message.to_owned() });
    }
    for (listener, of) in config.listeners.iter().enumerate() {
        for (is_there, key) in [(of.tls.is_some(), "tls"), (of.proxy_protocol.is_some(), "proxy_protocol")] {
            if is_there {
                let message = format!(
                    "[[listener]] {}: {key} is the Pingora server's to do, which accepts the connections: remove it, and \
                     have the service listen so (add_tls), or use `evenkeel run`",
                    of.addresses
                );
                refused.push(Unavailable { subject: Subject::Listener { listener }, message });
            }
        }
    }
    for (site, of) in config.sites.iter().enumerate() {
        if of.certificate.is_some() {
            let message = format!("site {}: certificate is the Pingora server's to choose: remove it", of.name);
            refused.push(Unavailable { subject: Subject::Site { site }, message });
        }
    }
    if by == By::Engine {
        return refused;
    }
    for (pool, of) in config.pools.iter().enumerate() {
        refused.extend(transport(of).map(|what| {
            let message = format!("pool \"{}\": {what}: {ELSEWHERE}", of.name);
            Unavailable { subject: Subject::Pool { pool }, message }
        }));
    }
    for (site, of) in config.sites.iter().enumerate() {
        if let Some(key) = rule(&of.fallback) {
            let message = format!("site {}: {key}: {ELSEWHERE}", of.name);
            refused.push(Unavailable { subject: Subject::Site { site }, message });
            continue;
        }
        for (route, of) in of.routes.iter().enumerate() {
            if let Some(what) = route_refused(of) {
                let message = format!("route {}: {what}: {ELSEWHERE}", of.name);
                refused.push(Unavailable { subject: Subject::RouteOfSite { site, route }, message });
            }
        }
    }
    if config.access_log.file.is_some() {
        let message = format!("[access_log] file: {ELSEWHERE}");
        refused.push(Unavailable { subject: Subject::AccessLog, message });
    }
    refused
}

const ELSEWHERE: &str = "this is not to be had in a Pingora proxy: remove it, or have Evenkeel's engine carry the requests (App, or `evenkeel run`)";

fn transport(pool: &PoolConfig) -> Option<&'static str> {
    let transport = &pool.settings.transport;
    match transport.proxy_protocol {
        _ if transport.tls.is_some() => Some("tls"),
        ProxyProtocol::Off => None,
        ProxyProtocol::V1 | ProxyProtocol::V2 => Some("proxy_protocol"),
    }
}

fn route_refused(route: &RouteConfig) -> Option<&'static str> {
    let action = match &route.action {
        Action::Pool(_) => None,
        Action::PoolFrom(_) => Some("a pool chosen by a value"),
        Action::Respond(_) => Some("respond"),
        Action::Redirect(_) => Some("redirect"),
        Action::Jump(_) => Some("jump"),
    };
    let condition = route.condition.as_ref().map(|_| "a condition");
    let internal = route.internal.then_some("internal");
    action.or(condition).or(internal).or_else(|| rule(&route.rules))
}

/// The first rule that cannot be kept.
fn rule(rules: &Rules) -> Option<&'static str> {
    // Each is named, so that a new one is not forgotten.
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
    let plain = Rules::default();
    let asked = [
        (rewrite.is_some(), "rewrite"),
        (host.is_some() || !changes.is_empty(), "request_headers"),
        (!response_headers.is_empty(), "response_headers"),
        (preset.is_some(), "a preset of response fields"),
        (!error_pages.is_empty(), "error_page"),
        (*intercept_errors, "intercept_errors"),
        (cors.is_some(), "cors"),
        (*location != plain.location, "rewriting of Location"),
        (*cookies != plain.cookies, "rewriting of cookies"),
        (client.min_rate.is_some(), "min_rate"),
        (access_log.is_some(), "access_log"),
    ];
    asked.into_iter().find_map(|(is_asked, key)| is_asked.then_some(key))
}

/// What is left to Pingora, where it was set to something else than by default.
fn ignored(config: &Config, by: By) -> Vec<String> {
    let Some(plain) = plain() else { return Vec::new() };
    let mut ignored = Vec::new();
    let mut tell = |of: &dyn fmt::Display, keys: Vec<&'static str>| {
        if !keys.is_empty() {
            let keys = keys.join(", ");
            ignored
                .push(format!("{of}: {keys}: no effect here, since the Pingora server has settings of its own for it"));
        }
    };
    tell(&"[server]", server(&config.server, &plain.server, by));
    for of in config.listeners.iter().filter(|of| of.socket_file.is_some()) {
        tell(&format_args!("[[listener]] {}", of.addresses), vec!["mode and owner of the socket's file"]);
    }
    if by == By::Proxy {
        for of in &config.listeners {
            if let Some(ListenerConfig { settings, .. }) = plain.listeners.first() {
                tell(&format_args!("[[listener]] {}", of.addresses), listener(&of.settings, settings));
            }
        }
        for of in &config.pools {
            let settings = &of.settings;
            let mut keys = Vec::new();
            if settings.read_timeout != settings.response_timeout {
                keys.push("read_timeout (a Pingora proxy waits as long for more of a response as for its head)");
            }
            if plain.pools.first().is_some_and(|plain| plain.settings.continue_timeout != settings.continue_timeout) {
                keys.push("continue_timeout");
            }
            tell(&format_args!("pool \"{}\"", of.name), keys);
        }
    }
    ignored
}

/// The defaults.
fn plain() -> Option<Config> {
    let text =
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[pool]]\nname = \"app\"\nbackends = []\n[[route]]\npool = \"app\"\n";
    toml::read(text, Path::new("/evenkeel.toml")).ok()
}

fn server(of: &ServerConfig, plain: &ServerConfig, by: By) -> Vec<&'static str> {
    let keys = [
        (of.max_connections != plain.max_connections && by == By::Proxy, "max_connections"),
        (of.max_handshakes != plain.max_handshakes, "max_handshakes"),
        (of.idle_connections != plain.idle_connections && by == By::Proxy, "idle_connections"),
    ];
    keys.into_iter().filter_map(|(is_set, key)| is_set.then_some(key)).collect()
}

fn listener(of: &ListenerSettings, plain: &ListenerSettings) -> Vec<&'static str> {
    // Each is named, so that a new one is not forgotten.
    let ListenerSettings {
        keepalive_timeout: _,
        header_timeout,
        body_timeout: _,
        send_timeout: _,
        lingering_time: _,
        lingering_timeout,
        min_rate,
        half_close,
        h2c,
        ambiguous_names: _,
        non_ascii_targets,
        max_request_line_bytes,
        max_head_bytes,
        max_fields,
        max_body_bytes: _,
    } = of;
    let keys = [
        (*header_timeout != plain.header_timeout, "header_timeout"),
        (*lingering_timeout != plain.lingering_timeout, "lingering_timeout"),
        (*min_rate != plain.min_rate, "min_rate"),
        (*half_close != plain.half_close, "half_close"),
        (*h2c != plain.h2c, "h2c"),
        (*non_ascii_targets != plain.non_ascii_targets, "non_ascii_targets"),
        (*max_request_line_bytes != plain.max_request_line_bytes, "max_request_line_bytes"),
        (*max_head_bytes != plain.max_head_bytes, "max_head_bytes"),
        (*max_fields != plain.max_fields, "max_fields"),
    ];
    keys.into_iter().filter_map(|(is_set, key)| is_set.then_some(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ListenerAddresses;
    use crate::config::backend::SocketAddress;

    fn config(text: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:8888\"\n{text}\n[[pool]]\nname = \"app\"\nbackends = [{{ address = \"a:1\" }}]\n"
        );
        toml::read(&text, Path::new("/evenkeel.toml")).expect("valid")
    }

    #[test]
    fn the_plainest_configuration_is_taken_up_without_a_word() {
        let config = config("[[route]]\npool = \"app\"");
        for by in [By::Proxy, By::Engine] {
            assert_eq!(check(&config, by), Ok(()));
            assert_eq!(ignored(&config, by), Vec::<String>::new());
        }
    }

    #[test]
    fn what_a_pingora_proxy_cannot_do_is_refused_by_name_and_the_engine_does_it() {
        for (text, key) in [
            (
                "[[site]]\nhosts = [\"a.example\"]\nresponse_headers = { set = { X-A = \"1\" } }\npool = \"app\"",
                "response_headers",
            ),
            (
                "[[site]]\nhosts = [\"a.example\"]\n[[site.route]]\npath = \"/\"\nredirect = \"https://b.example/\"",
                "redirect",
            ),
            (
                "[[site]]\nhosts = [\"a.example\"]\n[[site.route]]\npath = \"/\"\nmethods = [\"GET\"]\npool = \"app\"",
                "condition",
            ),
            ("[[route]]\npool = \"app\"\n[access_log]\nfile = \"stdout\"", "[access_log] file"),
        ] {
            let config = config(text);
            let Refused(problems) = check(&config, By::Proxy).expect_err(key);
            assert!(problems.iter().any(|problem| problem.contains(key) && problem.contains("App")), "{problems:?}");
            assert_eq!(check(&config, By::Engine), Ok(()), "{key}");
        }
    }

    #[test]
    fn what_is_pingoras_to_do_is_said_to_have_no_effect() {
        let config =
            config("min_rate = 1000\nmax_fields = 50\n[server]\nmax_handshakes = 3\n[[route]]\npool = \"app\"");
        let told = ignored(&config, By::Proxy).join("\n");
        for key in ["min_rate", "max_fields", "max_handshakes"] {
            assert!(told.contains(key), "{told}");
        }
        let told = ignored(&config, By::Engine).join("\n");
        assert!(!told.contains("min_rate") && told.contains("max_handshakes"), "{told}");
    }

    #[test]
    fn a_reload_is_held_to_the_same() {
        let running = config("[[route]]\npool = \"app\"");
        assert!(OfProxy.prepare(&running, &running, true).is_ok());
        let mut elsewhere = running.clone();
        let other = ListenerAddresses::new(vec![SocketAddress::Ip("127.0.0.1:1".parse().expect("an address"))]);
        elsewhere.listeners[0].addresses = other.expect("one");
        let problems = OfProxy.prepare(&running, &elsewhere, true).map(|_| ()).expect_err("its socket is bound");
        assert!(problems[0].message.contains("start it again"), "{problems:?}");
    }
}
