//! Each setting of `default.toml` in a configuration of its own.

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::config::ListenerAddresses;
use crate::config::backend::SocketAddress;
use crate::config::toml::keys;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    /// Has its usual effect, without a message.
    Applied,
    /// Has no effect, or another one, and a warning names it.
    Warned,
    /// An error names it.
    Refused,
}

use Effect::{Applied, Refused as No, Warned};

/// Part of every configuration in these tests; accepted without a message.
const IN_ALL: [&str; 9] = [
    "include",
    "listener.address",
    "pool.name",
    "pool.backends.address",
    "route.host",
    "route.pool",
    "site.hosts",
    "site.route.path",
    "site.route.pool",
];

/// A setting, or a table with all its keys, its result in Pingora's proxy and in the engine, and a value other than the
/// default.
type Setting = (&'static str, Effect, Effect, &'static str);

const SETTINGS: &[Setting] = &[
    ("server.user", No, No, r#""www-data""#),
    ("server.threads", Warned, Warned, "1000"),
    ("server.shutdown_delay", Warned, Warned, r#""3s""#),
    ("server.shutdown_timeout", Warned, Applied, r#""7s""#),
    ("server.trusted_proxies", Applied, Applied, r#"["10.0.0.0/8"]"#),
    ("server.forwarded_by", Applied, Applied, r#""forwarded""#),
    ("server.via", Applied, Applied, r#""edge-1""#),
    ("server.request_id", Applied, Applied, r#""X-Id""#),
    ("server.max_connections", Warned, Applied, "100"),
    ("server.max_handshakes", Warned, Warned, "100"),
    ("server.idle_connections", Warned, Applied, "100"),
    ("server.resolver.servers", Applied, Applied, r#"["10.0.0.2"]"#),
    ("server.resolver.timeout", Applied, Applied, r#""1s""#),
    ("server.resolver.attempts", Applied, Applied, "3"),
    ("server.resolver.min_ttl", Applied, Applied, r#""2s""#),
    ("server.resolver.max_ttl", Applied, Applied, r#""1m""#),
    ("server.resolver.hold", Applied, Applied, r#""1m""#),
    ("listener.addresses", Applied, Applied, r#"["127.0.0.1:8881", "127.0.0.1:8882"]"#),
    // Checked once the server listens.
    ("listener.mode", Applied, Applied, r#""0600""#),
    ("listener.owner", Warned, Warned, r#""root:root""#),
    ("listener.proxy_protocol", No, No, r#"{ from = ["10.0.0.0/8"] }"#),
    ("listener.name", Applied, Applied, r#""plain""#),
    ("listener.keepalive_timeout", Warned, Applied, r#""7s""#),
    ("listener.header_timeout", Warned, Applied, r#""7s""#),
    ("listener.body_timeout", Warned, Applied, r#""7s""#),
    ("listener.send_timeout", Applied, Applied, r#""7s""#),
    ("listener.lingering_time", Applied, Applied, r#""7s""#),
    ("listener.lingering_timeout", Warned, Applied, r#""7s""#),
    ("listener.min_rate", Warned, Applied, "1000"),
    ("listener.half_close", Applied, Applied, r#""answer""#),
    ("listener.h2c", Warned, Applied, "false"),
    ("listener.ambiguous_names", Applied, Applied, r#""reject""#),
    ("listener.non_ascii_targets", Applied, Applied, r#""pass""#),
    ("listener.max_request_line_bytes", Applied, Applied, "1000"),
    ("listener.max_head_bytes", Applied, Applied, "1000"),
    ("listener.max_fields", Applied, Applied, "50"),
    ("listener.max_body_bytes", Applied, Applied, "1000"),
    ("listener.tls", No, No, r#"{ certificate = "cert.pem", key = "key.pem" }"#),
    ("admin.address", Applied, Applied, r#""127.0.0.1:8890""#),
    ("admin.token_file", Applied, Applied, r#""token""#),
    ("admin.read_token_file", Applied, Applied, r#""other-token""#),
    ("state.persist", Applied, Applied, "false"),
    ("state.file", Applied, Applied, r#""state.json""#),
    ("log.file", Warned, Warned, r#""log""#),
    ("log.level", Warned, Warned, r#""debug""#),
    ("log.format", Warned, Warned, r#""json""#),
    ("access_log.file", No, Applied, r#""stdout""#),
    // Without a file it has no effect anywhere.
    ("access_log.format", Applied, Applied, r#""combined""#),
    ("metrics.exact_status", Applied, Applied, "true"),
    ("pool.algorithm", Applied, Applied, r#""ip-hash""#),
    ("pool.backends.weight", Applied, Applied, "3"),
    ("pool.backends.state", Applied, Applied, r#""draining""#),
    ("pool.backends.max_connections", Applied, Applied, "3"),
    ("pool.connect_timeout", Applied, Applied, r#""7s""#),
    // If it equals read_timeout.
    ("pool.response_timeout", Warned, Applied, r#""7s""#),
    ("pool.continue_timeout", Warned, Applied, r#""7s""#),
    ("pool.read_timeout", Warned, Applied, r#""7s""#),
    ("pool.write_timeout", Applied, Applied, r#""7s""#),
    ("pool.tunnel_timeout", Applied, Applied, r#""7s""#),
    ("pool.idle_timeout", Applied, Applied, r#""7s""#),
    ("pool.retries", Applied, Applied, "3"),
    ("pool.retry_timeout", Applied, Applied, r#""7s""#),
    ("pool.retry_body_bytes", Applied, Applied, "1000"),
    ("pool.max_head_bytes", Applied, Applied, "1000"),
    ("pool.max_fields", Applied, Applied, "50"),
    ("pool.queue_timeout", Applied, Applied, r#""7s""#),
    ("pool.source_address", Applied, Applied, r#""127.0.0.1""#),
    ("pool.proxy_protocol", No, Applied, r#""v1""#),
    ("pool.panic_threshold", Applied, Applied, "50"),
    ("pool.addresses", Applied, Applied, r#""each""#),
    ("pool.tls", No, Applied, r#"{ name = "a.example", verify = false }"#),
    ("pool.probe.type", Applied, Applied, r#""tcp""#),
    ("pool.probe.path", Applied, Applied, r#""/healthz""#),
    ("pool.probe.host", Applied, Applied, r#""a.example""#),
    ("pool.probe.status", Applied, Applied, r#""200""#),
    ("pool.probe.interval", Applied, Applied, r#""7s""#),
    ("pool.probe.timeout", Applied, Applied, r#""500ms""#),
    ("pool.probe.rise", Applied, Applied, "1"),
    ("pool.probe.fall", Applied, Applied, "1"),
    ("pool.ejection.consecutive_failures", Applied, Applied, "1"),
    ("pool.ejection.base_time", Applied, Applied, r#""7s""#),
    ("pool.ejection.max_time", Applied, Applied, r#""1m""#),
    ("pool.ejection.max_percent", Applied, Applied, "10"),
    ("pool.ejection.statuses", Applied, Applied, "[503]"),
    ("pool.sticky.cookie", Applied, Applied, r#""WAY""#),
    ("pool.sticky.path", Applied, Applied, r#""/a""#),
    ("pool.sticky.grace", Applied, Applied, r#""7s""#),
    ("pool.sticky.max_age", Applied, Applied, r#""1h""#),
    ("pool.sticky.same_site", Applied, Applied, r#""strict""#),
    ("pool.sticky.secure", Applied, Applied, r#""always""#),
    ("pool.sticky.secret_file", Applied, Applied, r#""token""#),
    ("route.path", Applied, Applied, r#""/b""#),
    // Only what uses them is rejected.
    ("values", Applied, Applied, r#"{ tier = { from = "$host", cases = { a = "b" } } }"#),
    ("site.name", Applied, Applied, r#""shop""#),
    ("site.listeners", Applied, Applied, r#"["127.0.0.1:8888"]"#),
    ("site.certificate", No, No, r#""cert.pem""#),
    ("site.pool", Applied, Applied, r#""app""#),
    ("site.route.name", Applied, Applied, r#""all""#),
    ("site.route.exact", Applied, Applied, r#""/a""#),
    ("site.route.prefix", Applied, Applied, r#""/a""#),
    ("site.route.regex", Applied, Applied, r#""^/a$""#),
    ("site.route.over_regex", Applied, Applied, "true"),
    ("site.route.methods", No, Applied, r#"["GET"]"#),
    ("site.route.networks", No, Applied, r#"["10.0.0.0/8"]"#),
    ("site.route.when", No, Applied, "{ query = { debug = true } }"),
    ("site.route.internal", No, Applied, "true"),
    ("site.route.pool_from", No, Applied, r#"{ value = "app", pools = ["app"] }"#),
    ("site.route.respond", No, Applied, "{ status = 200 }"),
    ("site.route.redirect", No, Applied, r#""https://b.example/""#),
    ("site.route.jump", No, Applied, r#""/b""#),
    ("site.route.rewrite", No, Applied, r#"{ prefix = "/v1" }"#),
    ("site.route.request_headers", No, Applied, r#"{ set = { X-A = "1" } }"#),
    ("site.route.response_headers", No, Applied, r#"{ set = { X-A = "1" } }"#),
    ("site.route.preset", No, Applied, r#""secure-headers""#),
    ("site.route.error_pages", No, Applied, r#"{ "404" = { text = "none" } }"#),
    ("site.route.intercept_errors", No, Applied, "true"),
    ("site.route.cors", No, Applied, r#"{ origins = ["https://b.example"] }"#),
    ("site.route.location", No, Applied, r#"[{ from = "http://a/", to = "/" }]"#),
    ("site.route.cookies", No, Applied, "{ secure = true }"),
    ("site.route.access_log", No, Applied, r#""stdout""#),
    ("site.route.max_body_bytes", Applied, Applied, "1000"),
    ("site.route.body_timeout", Warned, Applied, r#""7s""#),
    ("site.route.min_rate", No, Applied, "1000"),
    ("site.route.send_timeout", Applied, Applied, r#""7s""#),
    ("site.route.connect_timeout", Applied, Applied, r#""7s""#),
    ("site.route.response_timeout", Warned, Applied, r#""7s""#),
    ("site.route.read_timeout", Warned, Applied, r#""7s""#),
    ("site.route.write_timeout", Applied, Applied, r#""7s""#),
    ("site.route.tunnel_timeout", Applied, Applied, r#""7s""#),
    ("site.route.retries", Applied, Applied, "3"),
    ("site.route.retry_timeout", Applied, Applied, r#""7s""#),
    ("site.route.retry_body_bytes", Applied, Applied, "1000"),
];

/// In the order of a file; `backends` contains the keys of a backend besides its address.
const SECTIONS: [&str; 17] = [
    "",
    "server",
    "server.resolver",
    "admin",
    "state",
    "log",
    "access_log",
    "metrics",
    "listener",
    "pool",
    "pool.probe",
    "pool.ejection",
    "pool.sticky",
    "pool.backends",
    "route",
    "site",
    "site.route",
];

/// A server without settings.
fn host(mode: Mode) -> Host {
    Host { has_log: false, ..Host::new(mode, &ServerConf::default()) }
}

/// The files that the settings name.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in [
        ("cert.pem", &include_bytes!("../../config/toml/test-data/cert.pem")[..]),
        ("key.pem", include_bytes!("../../config/toml/test-data/key.pem")),
        ("token", b"0123456789abcdef0123456789abcdef"),
        ("other-token", b"fedcba9876543210fedcba9876543210"),
    ] {
        fs::write(folder.path().join(name), bytes).expect("written");
    }
    folder
}

/// A configuration that sets these keys to these values.
fn config(folder: &TempDir, settings: &[(&str, &str)]) -> Config {
    let mut lines: Vec<(&str, &str, String)> = [
        ("listener", "address", "\"127.0.0.1:8888\""),
        ("pool", "name", "\"app\""),
        ("route", "pool", "\"app\""),
        ("site", "hosts", "[\"a.example\"]"),
        ("site.route", "path", "\"/a\""),
        ("site.route", "pool", "\"app\""),
    ]
    .map(|(section, key, value)| (section, key, value.to_owned()))
    .into();
    for (setting, value) in settings {
        let (section, key) = setting.rsplit_once('.').unwrap_or(("", setting));
        let replaced = match key {
            "addresses" if section == "listener" => "address",
            "exact" | "prefix" | "regex" => "path",
            "pool_from" | "respond" | "redirect" | "jump" => "pool",
            _ => key,
        };
        lines.retain(|(of, old, _)| (*of, *old) != (section, replaced));
        if matches!(*setting, "listener.mode" | "listener.owner") {
            lines.retain(|(_, old, _)| *old != "address");
            lines.push(("listener", "address", "\"unix:socket\"".to_owned()));
        }
        lines.push((section, key, (*value).to_owned()));
    }
    let of_section = |section: &'static str| lines.iter().filter(move |(of, ..)| *of == section);
    let of_backend: Vec<_> = of_section("pool.backends").map(|(_, key, value)| format!(", {key} = {value}")).collect();
    let mut text = String::new();
    for section in SECTIONS.into_iter().filter(|section| *section != "pool.backends") {
        let mut of_section = of_section(section).peekable();
        match section {
            _ if of_section.peek().is_none() => continue,
            "" => {}
            "listener" | "pool" | "route" | "site" | "site.route" => text += &format!("[[{section}]]\n"),
            _ => text += &format!("[{section}]\n"),
        }
        of_section.for_each(|(_, key, value)| text += &format!("{key} = {value}\n"));
        if section == "pool" {
            text += &format!("backends = [{{ address = \"127.0.0.1:9001\"{} }}]\n", of_backend.concat());
        }
    }
    toml::read(&text, &folder.path().join("evenkeel.toml")).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"))
}

/// The key by which messages name a setting.
fn key(setting: &str) -> &str {
    match setting.rsplit('.').next().expect("a name") {
        // The two are compared.
        "response_timeout" => "read_timeout",
        key => key,
    }
}

/// Whether a text contains this word.
fn names(text: &str, key: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == key)
}

#[test]
fn the_plainest_configuration_is_accepted_without_notes() {
    assert!(defaults().is_some(), "the defaults are read");
    let config = config(&folder(), &[]);
    for mode in [Mode::Proxy, Mode::Engine] {
        assert_eq!(host(mode).check(&config), Ok(()));
        assert_eq!(host(mode).ignored(&config), Vec::<String>::new());
    }
}

#[test]
fn every_setting_is_honoured_reported_or_refused() {
    let folder = folder();
    let defaults = config(&folder, &[]);
    for &(setting, in_proxy, in_engine, value) in SETTINGS {
        let mut settings = vec![(setting, value)];
        settings.extend(match setting {
            "site.certificate" => Some(("listener.tls", r#"{ certificate = "cert.pem", key = "key.pem" }"#)),
            "admin.read_token_file" => Some(("admin.token_file", r#""token""#)),
            _ => None,
        });
        let config = config(&folder, &settings);
        assert!(config != defaults || setting == "site.pool", "{setting} = {value} is no other configuration");
        for (mode, effect) in [(Mode::Proxy, in_proxy), (Mode::Engine, in_engine)] {
            let (refused, notes) = (host(mode).refused(&config), host(mode).ignored(&config));
            let refused: Vec<_> = refused.into_iter().map(|problem| problem.message).collect();
            let key = key(setting);
            assert!(notes.len() <= 1, "{setting} {mode:?} {notes:?}");
            match effect {
                Applied => assert_eq!((refused, notes), (Vec::new(), Vec::new()), "{setting} {mode:?}"),
                Warned => assert!(
                    refused.is_empty() && notes.iter().any(|note| names(note, key)),
                    "{setting} {mode:?} {refused:?} {notes:?}"
                ),
                No => assert!(refused.iter().any(|message| names(message, key)), "{setting} {mode:?} {refused:?}"),
            }
        }
    }
}

#[test]
fn no_setting_is_forgotten() {
    let keys = keys();
    assert!(keys.len() > 150, "{}", keys.len());
    let is_below = |key: &str, table: &str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
    for key in &keys {
        // If a table is rejected as a whole, it stands for its keys.
        let is_of = |&&(setting, in_proxy, ..): &&Setting| {
            setting == key || ((in_proxy == No || setting == "values") && is_below(key, setting))
        };
        let count = SETTINGS.iter().filter(is_of).count() + usize::from(IN_ALL.contains(&&**key));
        assert_eq!(count, 1, "{key}: decide what becomes of it in a Pingora server, and write it into SETTINGS");
    }
    let is_there = |setting: &str| keys.iter().any(|key| key == setting || is_below(key, setting));
    let removed: Vec<_> =
        SETTINGS.iter().map(|(setting, ..)| *setting).chain(IN_ALL).filter(|key| !is_there(key)).collect();
    assert_eq!(removed, Vec::<&str>::new(), "no settings any more");
}

#[test]
fn docs_list_the_settings_that_are_not_honoured() {
    let page = include_str!("../../../../docs/pingora.md");
    let table = page.split_once("\n## What becomes of each setting\n").expect("the section").1;
    let table = table.split("\n## ").next().expect("the section");
    let rows: Vec<_> = table.lines().filter_map(|row| row.strip_prefix("| `")?.split_once(" |")).collect();
    assert!(rows.len() > 10, "{rows:?}");
    for &(setting, in_proxy, ..) in
        SETTINGS.iter().filter(|(_, in_proxy, in_engine, _)| (*in_proxy, *in_engine) != (Applied, Applied))
    {
        let word = if in_proxy == No { "refused" } else { "told" };
        // Several settings may have the same key.
        let is_of = |(keys, effect): &&(&str, &str)| names(keys, key(setting)) && effect.contains(word);
        assert!(rows.iter().any(|row| is_of(&row)), "docs/pingora.md does not say that {setting} is {word}");
    }
}

#[test]
fn settings_that_the_server_honours_are_not_reported() {
    let folder = folder();
    let settings = [
        ("server.threads", "3"),
        ("server.shutdown_timeout", "\"700ms\""),
        ("server.idle_connections", "100"),
        ("pool.retries", "12"),
        ("log.level", "\"debug\""),
    ];
    let config = config(&folder, &settings);
    let notes = host(Mode::Proxy).ignored(&config).join("\n");
    for (setting, _) in settings {
        assert!(names(&notes, key(setting)), "{setting}: {notes}");
    }
    let server = ServerConf {
        threads: 3,
        grace_period_seconds: Some(1),
        upstream_keepalive_pool_size: 34,
        max_retries: 25,
        ..ServerConf::default()
    };
    let host = Host { has_log: true, ..Host::new(Mode::Proxy, &server) };
    assert_eq!(host.ignored(&config), Vec::<String>::new());
    let host = Host { grace_period: Duration::from_millis(600), ..Host::new(Mode::Engine, &server) };
    assert!(host.ignored(&config).iter().any(|note| names(note, "shutdown_timeout")), "it stops sooner");
}

#[test]
fn settings_beyond_pingoras_abilities_are_reported() {
    let folder = folder();
    for (setting, value) in [("listener.max_fields", "300"), ("pool.retries", "16"), ("site.route.retries", "16")] {
        let config = config(&folder, &[(setting, value)]);
        assert!(host(Mode::Proxy).ignored(&config).iter().any(|note| names(note, key(setting))), "{setting}");
        assert_eq!(host(Mode::Engine).ignored(&config), Vec::<String>::new());
    }
}

#[test]
fn settings_without_effect_under_pingora_are_accepted() {
    let folder = folder();
    for (setting, value) in
        [("site.route.location", "\"off\""), ("site.route.access_log", "\"off\""), ("site.route.preset", "\"none\"")]
    {
        assert_eq!(host(Mode::Proxy).check(&config(&folder, &[(setting, value)])), Ok(()), "{setting}");
    }
}

#[test]
fn every_refused_key_is_named_and_keys_of_a_site_once() {
    let settings = [
        ("site.cors", "{ origins = [\"https://b.example\"] }"),
        ("site.route.redirect", "\"https://b.example/\""),
        ("site.route.methods", "[\"GET\"]"),
        ("pool.tls", "true"),
    ];
    let Refused(problems) = host(Mode::Proxy).check(&config(&folder(), &settings)).expect_err("refused");
    let [pool, route, site] = &*problems else { panic!("{problems:?}") };
    assert!(pool.starts_with("pool \"app\": tls: ") && pool.contains("App"), "{pool}");
    assert!(route.starts_with("route a.example/a: redirect, methods: "), "{route}");
    assert!(site.starts_with("site a.example: cors: "), "{site}");
}

#[test]
fn a_reload_is_checked_as_a_start_is() {
    let folder = folder();
    let running = config(&folder, &[]);
    let reloads = ProxyResources(host(Mode::Proxy));
    assert!(reloads.prepare(&running, &running, true).is_ok());
    let with_warning = config(&folder, &[("listener.min_rate", "1000")]);
    let warnings = reloads.prepare(&running, &with_warning, true).map(|obtained| obtained.warnings).expect("taken up");
    assert!(names(&warnings.concat(), "min_rate"), "{warnings:?}");
    let refused = config(&folder, &[("pool.proxy_protocol", "\"v1\"")]);
    let problems = reloads.prepare(&running, &refused, true).map(|_| ()).expect_err("refused");
    assert!(names(&problems[0].message, "proxy_protocol"), "{problems:?}");
    let mut elsewhere = running.clone();
    let other = ListenerAddresses::new(vec![SocketAddress::Ip("127.0.0.1:1".parse().expect("an address"))]);
    elsewhere.listeners[0].addresses = other.expect("one");
    let problems = reloads.prepare(&running, &elsewhere, true).map(|_| ()).expect_err("its socket is bound");
    assert!(problems[0].message.contains("start it again"), "{problems:?}");
}
