//! In the texts of these tests `§` marks the position at which the problem must be reported.

use std::collections::BTreeSet;
use std::fs;

use ::toml::Spanned;
use proptest::prelude::*;
use tempfile::TempDir;

use super::template::with_examples;
use super::*;
use crate::config::backend::AdminState;
use crate::config::{AccessLogFile, ProbeKind};

mod defaults;
mod examples;
pub(super) mod sites;
mod words;

const MINIMAL: &str = "
[[listener]]
address = \"127.0.0.1:8888\"
[[pool]]
name = \"app\"
backends = [\"127.0.0.1:9001\"]
[[route]]
pool = \"app\"
";

fn config(text: &str) -> Config {
    read(text, Path::new("/etc/evenkeel.toml")).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"))
}

fn problems(text: &str) -> Vec<Problem> {
    read(text, Path::new("/etc/evenkeel.toml")).err().unwrap_or_default()
}

/// Asserts that the only problem of a text with one `§` is there and has this message.
fn assert_problem(marked: &str, message: &str) {
    let offset = marked.find('§').expect("a mark");
    let position = Some(reader::position(marked, offset));
    let expected = Problem { file: None, position, message: message.to_owned() };
    assert_eq!(problems(&marked.replace('§', "")), [expected], "{marked}");
}

/// The minimal configuration with lines added to its only listener, pool or route, or with an additional section.
fn minimal_with(section: &str, lines: &str) -> String {
    let heading = match section {
        "listener" | "pool" | "route" => format!("[[{section}]]"),
        _ => format!("[{section}]"),
    };
    if MINIMAL.contains(&heading) {
        return MINIMAL.replace(&heading, &format!("{heading}\n{lines}"));
    }
    match section.strip_prefix("pool.") {
        Some(_) => MINIMAL.replace("[[route]]", &format!("{heading}\n{lines}\n[[route]]")),
        None => format!("{heading}\n{lines}\n{MINIMAL}"),
    }
}

/// The minimal configuration with one of its values replaced.
fn minimal_but(old: &str, new: &str) -> String {
    assert!(MINIMAL.contains(old), "{old}");
    MINIMAL.replace(old, new)
}

#[test]
fn the_defaults_are_a_valid_configuration() {
    let defaults = config(DEFAULT);
    assert_eq!(defaults.state.file.as_deref(), Some(Path::new("/etc/evenkeel.state.json")));
    assert!(defaults.server.threads >= 1);
}

#[test]
fn an_absent_key_has_the_value_of_default_toml() {
    let mut written = config(DEFAULT);
    let settings = &mut written.pools[0].settings;
    settings.probe = None;
    settings.sticky = None;
    let minimal = config(MINIMAL);
    assert_eq!(minimal, Config { pools: written.pools.clone(), ..written }.with_backend("127.0.0.1:9001"));
}

impl Config {
    fn with_backend(mut self, address: &str) -> Self {
        self.pools[0].backends[0].address = address.parse().expect("an address");
        self
    }
}

#[test]
fn empty_probe_and_sticky_tables_enable_them() {
    let text = minimal_with("pool", "probe = {}\nsticky = {}");
    let (read, full) = (config(&text), config(DEFAULT));
    assert_eq!(read.pools[0].settings.probe, full.pools[0].settings.probe);
    assert_eq!(read.pools[0].settings.sticky, full.pools[0].settings.sticky);
}

#[test]
fn inline_tables_dotted_keys_and_headings_are_equivalent() {
    let inline = minimal_with("pool", "probe = { path = \"/up\", rise = 7 }\nejection = { max_percent = 9 }");
    let dotted = minimal_with("pool", "probe.path = \"/up\"\nprobe.rise = 7\nejection.max_percent = 9");
    let heading = minimal_with("pool.probe", "path = \"/up\"\nrise = 7\n[pool.ejection]\nmax_percent = 9");
    assert_eq!(config(&inline), config(&dotted));
    assert_eq!(config(&inline), config(&heading));
}

#[test]
fn backends_can_be_addresses_or_tables() {
    let list = minimal_but("[\"127.0.0.1:9001\"]", "[\"a:80\", { address = \"b:80\", weight = 3, state = \"down\" }]");
    let tables = minimal_but(
        "backends = [\"127.0.0.1:9001\"]",
        "[[pool.backends]]\naddress = \"a:80\"\n[[pool.backends]]\naddress = \"b:80\"\nweight = 3\nstate = \"down\"",
    );
    let backends = config(&list).pools.remove(0).backends;
    let short: Vec<_> = backends.iter().map(|b| (b.address.as_str(), b.weight.as_u32(), b.state)).collect();
    assert_eq!(short, [("a:80", 1, AdminState::Active), ("b:80", 3, AdminState::Down)]);
    assert_eq!(config(&tables).pools.remove(0).backends, backends);
    assert_eq!(config(&minimal_but("[\"127.0.0.1:9001\"]", "[]")).pools[0].backends, []);
}

#[test]
fn values_are_converted_to_their_types() {
    let server =
        "threads = 3\ntrusted_proxies = [\"10.0.0.0/8\", \"192.0.2.7\", \"fd00::/8\"]\nshutdown_delay = \"1500ms\"";
    let server = config(&minimal_with("server", server)).server;
    assert_eq!(server.threads, 3);
    assert_eq!(server.shutdown_delay, Duration::from_millis(1500));
    let networks: Vec<_> = server.trusted_proxies.networks.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"]);
    assert!(!server.trusted_proxies.has_unix);
    let user = "user = \"www-data:adm\"\ntrusted_proxies = [\"unix:\"]";
    let server = config(&minimal_with("server", user)).server;
    assert_eq!(server.user.map(|user| user.to_string()).as_deref(), Some("www-data:adm"));
    assert!(server.trusted_proxies.has_unix && server.trusted_proxies.networks.is_empty());
    let socket = "address = \"unix:run/web.sock\"\nmode = \"0600\"\nowner = \":adm\"";
    let listener = config(&minimal_but("address = \"127.0.0.1:8888\"", socket)).listeners.remove(0);
    assert!(listener.addresses.to_string().starts_with("unix:/"), "{}", listener.addresses);
    let rights = listener.socket_file.expect("it has a Unix socket");
    assert_eq!((rights.mode, rights.owner.map(|owner| owner.to_string()).as_deref()), (0o600, Some(":adm")));
    let listener = config(&minimal_with("listener", "max_body_bytes = 0")).listeners.remove(0);
    assert_eq!(listener.settings.max_body_bytes, None);
    let pool = |lines: &str| config(&minimal_with("pool", lines)).pools.remove(0).settings;
    let [one, two] = [1, 2].map(Duration::from_secs);
    assert_eq!(pool("response_timeout = \"2s\"").retry_timeout, two, "as long as response_timeout");
    assert_eq!(pool("response_timeout = \"2s\"\nretry_timeout = \"1s\"").retry_timeout, one);
    let ejection = |lines: &str| config(&minimal_with("pool.ejection", lines)).pools.remove(0).settings.ejection;
    assert_eq!(ejection("statuses = [502, 503]").statuses, [502, 503]);
    assert!(ejection("").statuses.is_empty());
    let sticky = config(&minimal_with("pool.sticky", "max_age = \"24h\"")).pools.remove(0).settings.sticky;
    assert_eq!(sticky.expect("written").max_age, Some(DAY));
    let probe = config(&minimal_with("pool.probe", "type = \"tcp\"")).pools.remove(0).settings.probe;
    assert_eq!(probe.expect("written").kind, ProbeKind::Tcp);
    let probe = config(&minimal_with("pool.probe", "host = \"up.example:80\"")).pools.remove(0).settings.probe;
    assert!(
        matches!(probe.expect("written").kind, ProbeKind::Http { host: Some(host), .. } if host == "up.example:80")
    );
}

#[test]
fn relative_paths_are_relative_to_the_configuration_file() {
    let of = |lines: &str| config(&format!("{lines}\n{MINIMAL}"));
    let log = |file: &str| of(&format!("[access_log]\nfile = \"{file}\"")).access_log.file;
    assert_eq!(log("a.log"), Some(AccessLogFile::Path("/etc/a.log".into())));
    assert_eq!(log("/var/a.log"), Some(AccessLogFile::Path("/var/a.log".into())));
    assert_eq!(log("stdout"), Some(AccessLogFile::Stdout));
    assert_eq!(log(""), None);
    assert_eq!(of("[state]\nfile = \"s.json\"").state.file, Some("/etc/s.json".into()));
    assert_eq!(of("[state]\npersist = false").state.file, None);
    let here = read(MINIMAL, Path::new("lb.toml")).expect("valid");
    assert_eq!(here.state.file, Some("lb.state.json".into()));
}

#[test]
fn wrong_values_are_reported_with_position_and_fix() {
    let duration = "listener.header_timeout is";
    let address = "write IP:PORT, such as \"0.0.0.0:8888\", \"127.0.0.1:8888\" or \"[::]:8888\"";
    for (section, line, message) in [
        ("server", "threads = §-1", "server.threads is -1: write a whole number from 0 to 1024"),
        ("server", "threads = §0x401", "server.threads is 0x401: write a whole number from 0 to 1024"),
        (
            "server",
            "threads = §99999999999999999999",
            "server.threads is 99999999999999999999: write a whole number from 0 to 1024",
        ),
        (
            "pool.ejection",
            "statuses = [502, §499]",
            "pool.ejection.statuses is 499: write codes from 500 to 599, such as [502, 503] or \"500-599\"",
        ),
        ("pool.ejection", "statuses = §503", "pool.ejection.statuses is 503: write an array, such as [503]"),
        ("pool", "continue_timeout = §\"0s\"", "pool.continue_timeout is \"0s\": write a duration from 1ms to 24h"),
        ("server", "threads = §{}", "server.threads is a table: write a whole number from 0 to 1024"),
        (
            "server",
            "trusted_proxies = [§\"10.0.0.1/8\"]",
            "server.trusted_proxies is \"10.0.0.1/8\": write \"10.0.0.0/8\" for the network, or \"10.0.0.1\" for the address, or \"unix:\"",
        ),
        (
            "server",
            "trusted_proxies = [\"10.0.0.0/8\", §\"10.0.0.0/33\"]",
            "server.trusted_proxies is \"10.0.0.0/33\": write a network or an address, such as \"10.0.0.0/8\", \"fd00::/8\" or \"192.0.2.7\", or \"unix:\"",
        ),
        (
            "server",
            "forwarded_by = §\"x_forwarded\"",
            "server.forwarded_by is \"x_forwarded\": write one of \"x-forwarded\", \"forwarded\" (did you mean \"x-forwarded\"?)",
        ),
        (
            "server",
            "via = §\"edge 1\"",
            "server.via is \"edge 1\": write a name of letters, digits and !#$%&'*+-.^_`|~, such as \"edge-1\", or \"\" for none",
        ),
        (
            "server",
            "request_id = §\"Set-Cookie\"",
            "server.request_id is \"Set-Cookie\": write the name of a field without another meaning here, such as \"X-Request-Id\", or \"\"",
        ),
        (
            "server",
            "request_id = §\"X Id\"",
            "server.request_id is \"X Id\": write the name of a field without another meaning here, such as \"X-Request-Id\", or \"\"",
        ),
        (
            "server",
            "trusted_proxies = §\"10.0.0.0/8\"",
            "server.trusted_proxies is \"10.0.0.0/8\": write an array, such as [\"10.0.0.0/8\"]",
        ),
        (
            "listener",
            "ambiguous_names = §\"keep\"",
            "listener.ambiguous_names is \"keep\": write one of \"drop\", \"pass\", \"reject\"",
        ),
        (
            "listener",
            "max_body_bytes = §\"1m\"",
            "listener.max_body_bytes is \"1m\": write a number of bytes, or text with KB, MB, GB, KiB, MiB or GiB, such as \"1MiB\"",
        ),
        (
            "listener",
            "header_timeout = §10",
            &format!("{duration} 10: write a duration with its unit, such as \"10s\""),
        ),
        (
            "listener",
            "header_timeout = §\"10\"",
            &format!("{duration} \"10\": write a duration with its unit, such as \"10s\""),
        ),
        (
            "listener",
            "header_timeout = §1.5",
            &format!("{duration} 1.5: write a duration, such as \"500ms\", \"2s\", \"5m\" or \"1h\""),
        ),
        (
            "listener",
            "header_timeout = §\"1.5s\"",
            &format!(
                "{duration} \"1.5s\": write a whole number and a smaller unit, such as \"1500ms\" for one and a half seconds"
            ),
        ),
        (
            "listener",
            "header_timeout = §\"1m30s\"",
            &format!(
                "{duration} \"1m30s\": write one whole number with the unit ms, s, m or h, such as \"500ms\" or \"90s\""
            ),
        ),
        (
            "listener",
            "header_timeout = §\"s\"",
            &format!("{duration} \"s\": write a number before the unit, such as \"2s\""),
        ),
        ("listener", "header_timeout = §\"0s\"", &format!("{duration} \"0s\": write a duration from 1ms to 24h")),
        ("listener", "header_timeout = §\"25h\"", &format!("{duration} \"25h\": write a duration from 1ms to 24h")),
        (
            "listener",
            "header_timeout = §\"99999999999999999999h\"",
            &format!("{duration} \"99999999999999999999h\": write a duration from 1ms to 24h"),
        ),
        ("admin", "address = §\"localhost:8889\"", &format!("admin.address is \"localhost:8889\": {address}")),
        ("admin", "address = §\":8889\"", &format!("admin.address is \":8889\": {address}")),
        ("state", "persist = §\"yes\"", "state.persist is \"yes\": write true or false, without quotes"),
        ("state", "file = §[]", "state.file is an array: write the path of a file in quotes"),
        (
            "log",
            "level = §\"INFO\"",
            "log.level is \"INFO\": write one of \"error\", \"warn\", \"info\", \"debug\", \"trace\" (did you mean \"info\"?)",
        ),
        ("log", "format = §\"yaml\"", "log.format is \"yaml\": write one of \"text\", \"json\""),
        ("access_log", "format = §true", "access_log.format is true: write one of \"json\", \"combined\""),
        (
            "pool",
            "algorithm = §\"least-connection\"",
            "pool.algorithm is \"least-connection\": write one of \"round-robin\", \"weighted\", \"least-connections\", \"ip-hash\" (did you mean \"least-connections\"?)",
        ),
        ("pool", "retries = §17", "pool.retries is 17: write a whole number from 0 to 16"),
        ("pool", "panic_threshold = §101", "pool.panic_threshold is 101: write a whole number from 0 to 100"),
        ("pool", "probe = §\"/healthz\"", "pool.probe is \"/healthz\": write a section [pool.probe]"),
        ("pool.probe", "type = §\"grpc\"", "pool.probe.type is \"grpc\": write one of \"http\", \"tcp\""),
        (
            "pool.probe",
            "path = §\"healthz\"",
            "pool.probe.path is \"healthz\": write a request target that starts with \"/\", such as \"/healthz\"",
        ),
        (
            "pool.probe",
            "host = §\"*.example.com\"",
            "pool.probe.host is \"*.example.com\": write a host with or without port, such as \"example.com\" or \"example.com:8080\", or \"\"",
        ),
        (
            "pool.probe",
            "status = §\"2xx\"",
            "pool.probe.status is \"2xx\": write codes from 100 to 599 in quotes, such as \"200\", \"200-399\" or \"200-299,304\"",
        ),
        ("pool.probe", "rise = §0", "pool.probe.rise is 0: write a whole number from 1 to 100"),
        (
            "pool.probe",
            "type = \"tcp\"\n§path = \"/up\"",
            "pool.probe.path has no effect for a tcp probe: remove it, or write type = \"http\"",
        ),
        (
            "pool.ejection",
            "consecutive_failures = §1001",
            "pool.ejection.consecutive_failures is 1001: write a whole number from 0 to 1000",
        ),
        (
            "pool.sticky",
            "cookie = §\"a b\"",
            "pool.sticky.cookie is \"a b\": write a cookie's name of 1 to 128 letters, digits, \"-\" and \"_\"",
        ),
        ("pool.sticky", "max_age = §\"9601h\"", "pool.sticky.max_age is \"9601h\": write a duration from 0s to 9600h"),
        (
            "route",
            "host = §\"example.com:80\"",
            "route.host is \"example.com:80\": write a name without scheme and port, such as \"example.com\" or \"*.example.com\", or \"\" for any",
        ),
        (
            "route",
            "path = §\"/a b\"",
            "route.path is \"/a b\": write a path that starts with \"/\", without query or spaces, such as \"/api\"",
        ),
    ] {
        assert_problem(&minimal_with(section, line), message);
    }
}

#[test]
fn wrong_values_of_required_keys_are_reported_with_position_and_fix() {
    for (old, new, message) in [
        (
            "\"127.0.0.1:8888\"",
            "§8888",
            "listener.address is 8888: write IP:PORT, such as \"0.0.0.0:8888\", \"127.0.0.1:8888\" or \"[::]:8888\", or \"unix:/run/evenkeel.sock\"",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[§\"web1\"]",
            "pool.backends is \"web1\": write HOST:PORT with a port from 1 to 65535, such as \"10.0.0.5:8080\", \"[::1]:8080\" or \"web1:8080\", the path of a Unix socket, such as \"unix:/run/app.sock\", or a service of DNS, such as \"srv:_http._tcp.example\"",
        ),
        ("[\"127.0.0.1:9001\"]", "§\"web1:80\"", "pool.backends is \"web1:80\": write an array, such as [\"web1:80\"]"),
        (
            "[\"127.0.0.1:9001\"]",
            "[{ address = §\"web1\" }]",
            "pool.backends.address is \"web1\": write HOST:PORT with a port from 1 to 65535, such as \"10.0.0.5:8080\", \"[::1]:8080\" or \"web1:8080\", the path of a Unix socket, such as \"unix:/run/app.sock\", or a service of DNS, such as \"srv:_http._tcp.example\"",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[{ address = \"a:1\", weight = §0 }]",
            "pool.backends.weight is 0: write a whole number from 1 to 1000; to send a backend nothing write state = \"down\"",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[{ address = \"a:1\", weight = §1001 }]",
            "pool.backends.weight is 1001: write a whole number from 1 to 1000",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[{ address = \"a:1\", state = §\"removing\" }]",
            "pool.backends.state is \"removing\": write one of \"active\", \"draining\", \"down\"",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[{ address = \"a:1\", §wieght = 2 }]",
            "pool.backends.wieght is not a setting: did you mean \"weight\"? a backend takes address, max_connections, state, weight",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[§{ weight = 2 }]",
            "pool.backends.address is missing: write address = \"127.0.0.1:9001\"",
        ),
        (
            "[\"127.0.0.1:9001\"]",
            "[\"a:1\", §\"A:1\"]",
            "pool.backends has \"A:1\" twice, the first time as \"a:1\": remove one, and write weight = 2 to send it twice as much",
        ),
    ] {
        assert_problem(&minimal_but(old, new), message);
    }
}

#[test]
fn pool_names_are_checked_wherever_they_occur() {
    let fix = "write a name of 1 to 64 letters, digits, \"-\", \"_\" and \".\"";
    let text = minimal_but("name = \"app\"", "name = \"my app\"");
    let messages: Vec<_> = problems(&text).into_iter().map(|problem| problem.message).collect();
    assert_eq!(messages[0], format!("pool.name is \"my app\": {fix}"));
    assert_problem(&minimal_but("pool = \"app\"", "pool = §\"my app\""), &format!("route.pool is \"my app\": {fix}"));
}

#[test]
fn sections_of_the_wrong_kind_are_explained() {
    for (marked, message) in [
        (
            minimal_but("\"127.0.0.1:8888\"", "\"127.0.0.1:8888\"\nproxy_protocol = §true"),
            "listener.proxy_protocol is true: write proxy_protocol = { from = [\"10.0.0.0/8\"] }, with the networks of the load balancers that send the header",
        ),
        (
            minimal_with("server", "resolver = §\"10.0.0.2\""),
            "server.resolver is \"10.0.0.2\": write resolver = { servers = [\"10.0.0.2\"] }",
        ),
        (
            minimal_but("[[listener]]", "§[listener]"),
            "there can be several of listener: write [[listener]], with two brackets",
        ),
        (
            format!("§[[server]]\nthreads = 1\n{MINIMAL}"),
            "server is an array: write [server], once; nginx's server is a [[site]] here",
        ),
        (format!("log = §\"debug\"\n{MINIMAL}"), "log is \"debug\": write a section [log]"),
        (
            minimal_but("[[route]]\npool = \"app\"", "").replacen('\n', "route = §\"/\"\n", 1),
            "route is \"/\": write [[route]] above its settings",
        ),
        (
            minimal_but("[[route]]\npool = \"app\"", "").replacen('\n', "route = [{ pool = \"app\" }, §1]\n", 1),
            "route is 1: write [[route]] above its settings",
        ),
    ] {
        assert_problem(&marked, message);
    }
}

#[test]
fn missing_required_keys_are_reported_at_their_section() {
    for (old, message) in [
        ("address = \"127.0.0.1:8888\"", "listener.address is missing: write address = \"127.0.0.1:8888\""),
        ("name = \"app\"", "pool.name is missing: write name = \"app\""),
        (
            "backends = [\"127.0.0.1:9001\"]",
            "pool.backends is missing: write backends = [{ address = \"127.0.0.1:9001\", weight = 1, state = \"active\", max_connections = 0 }]",
        ),
        ("pool = \"app\"", "route.pool is missing: write pool = \"app\""),
    ] {
        let section = message.split('.').next().expect("a section");
        let heading = format!("[[{section}]]");
        let marked = minimal_but(old, "").replace(&heading, &format!("§{heading}"));
        let found = problems(&marked.replace('§', ""));
        let expected = Problem {
            file: None,
            position: Some(reader::position(&marked, marked.find('§').expect("a mark"))),
            message: message.to_owned(),
        };
        assert_eq!(found.first(), Some(&expected), "{marked}");
    }
}

#[test]
fn an_empty_file_is_missing_listener_pool_and_route() {
    let messages: Vec<_> = problems("").iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "there is no [[listener]]: add one with its address, such as \"0.0.0.0:8888\"",
            "there is no [[pool]]: add one with a name and its backends",
            "there is no [[route]]: without one every request is refused; add one that names a pool, or a [[site]]",
        ]
    );
    assert_eq!(problems("listener = []\npool = []\nroute = []").len(), 3);
}

#[test]
fn contradictory_settings_are_reported() {
    let second_listener = |address: &str| format!("{MINIMAL}[[listener]]\naddress = §\"{address}\"\n");
    for (marked, message) in [
        (
            second_listener("127.0.0.1:8888"),
            "listener.address is \"127.0.0.1:8888\", which another [[listener]] has taken with \"127.0.0.1:8888\": write another port",
        ),
        (
            second_listener("0.0.0.0:8888"),
            "listener.address is \"0.0.0.0:8888\", which another [[listener]] has taken with \"127.0.0.1:8888\": write another port",
        ),
        (
            minimal_but("\"127.0.0.1:8888\"", "\"127.0.0.1:8888\"\nproxy_protocol = { from = §[] }"),
            "listener.proxy_protocol.from names no network: write the addresses of the load balancers that send the header, such as [\"10.0.0.0/8\"]",
        ),
        (
            minimal_but("address = \"127.0.0.1:8888\"", "addresses = [\"127.0.0.1:8888\", §\"0.0.0.0:8888\"]"),
            "listener.addresses has \"0.0.0.0:8888\", which overlaps with \"127.0.0.1:8888\": remove one of the two",
        ),
        (
            minimal_but("\"127.0.0.1:8888\"", "\"127.0.0.1:8888\"\naddresses = [§\"127.0.0.1:8888\"]"),
            "listener.addresses has \"127.0.0.1:8888\", which is listed already: remove one of the two",
        ),
        (
            minimal_but(
                "\"127.0.0.1:8888\"",
                "\"127.0.0.1:8888\"\n[[listener]]\naddresses = [\"127.0.0.1:1\", §\"0.0.0.0:8888\"]",
            ),
            "listener.addresses has \"0.0.0.0:8888\", which another [[listener]] has taken with \"127.0.0.1:8888\": write another port",
        ),
        (
            minimal_but("\"127.0.0.1:8888\"", "\"127.0.0.1:8888\"\n§mode = \"0660\""),
            "listener.mode has no effect without a Unix socket: remove it, or write address = \"unix:/run/evenkeel.sock\"",
        ),
        (
            minimal_but("\"127.0.0.1:8888\"", "\"unix:/run/a.sock\"\nmode = §\"660x\""),
            "listener.mode is \"660x\": write permission bits as octal digits in quotes, such as \"0660\"",
        ),
        (
            minimal_but("\"127.0.0.1:8888\"", "\"unix:/run/a.sock\"\naddresses = [§\"unix:/run/a.sock\"]"),
            "listener.addresses has \"unix:/run/a.sock\", which is listed already: remove one of the two",
        ),
        (
            minimal_with("server", "user = §\":adm\""),
            "server.user is \":adm\": write a user, such as \"www-data\", or a user and a group, such as \"www-data:adm\"",
        ),
        (
            minimal_but("address = \"127.0.0.1:8888\"", "addresses = §[]"),
            "listener.addresses is empty: write at least one, such as \"0.0.0.0:8888\"",
        ),
        (
            minimal_with("admin", "address = §\"127.0.0.1:8888\""),
            "admin.address is \"127.0.0.1:8888\", which a [[listener]] has taken with \"127.0.0.1:8888\": write another port",
        ),
        (
            minimal_but("\"127.0.0.1:8888\"", "§\"127.0.0.1:8889\""),
            "admin.address is \"127.0.0.1:8889\", which a [[listener]] has taken with \"127.0.0.1:8889\": write another port",
        ),
        (
            minimal_with("admin", "address = §\"0.0.0.0:8889\""),
            "admin.address is \"0.0.0.0:8889\", which others can reach, and there is no token: write token_file, or a loopback address such as \"127.0.0.1:8889\"",
        ),
        (
            format!("{MINIMAL}[[pool]]\nname = §\"app\"\nbackends = []\n"),
            "pool.name is \"app\", which another [[pool]] has: write another name",
        ),
        (
            format!("{MINIMAL}[[route]]\npath = §\"/\"\npool = \"app\"\n"),
            "the route for host \"\" and path \"/\" is in line 7 already: remove one of the two, or change its host or path",
        ),
        (
            format!(
                "{MINIMAL}[[route]]\nhost = \"A.example\"\npool = \"app\"\n[[route]]\nhost = §\"a.example\"\npool = \"app\"\n"
            ),
            "the route for host \"a.example\" and path \"/\" is in line 10 already: remove one of the two, or change its host or path",
        ),
        (
            minimal_but("pool = \"app\"", "pool = §\"apps\""),
            "route.pool is \"apps\", but there is no such pool: did you mean \"app\"? the pools are app",
        ),
        (
            minimal_with("pool.probe", "timeout = §\"3s\""),
            "pool.probe.timeout is 3s, longer than the interval of 2s: write a shorter timeout or a longer interval",
        ),
        (
            minimal_with("pool.probe", "interval = §\"500ms\""),
            "pool.probe.timeout is 1s, longer than the interval of 500ms: write a shorter timeout or a longer interval",
        ),
        (
            minimal_with("pool.ejection", "max_time = §\"5s\""),
            "pool.ejection.max_time is 5s, shorter than the base_time of 10s: write a longer max_time or a shorter base_time",
        ),
        (
            minimal_with("pool.ejection", "base_time = §\"10m\""),
            "pool.ejection.max_time is 300s, shorter than the base_time of 600s: write a longer max_time or a shorter base_time",
        ),
        (
            minimal_with("pool.sticky", "same_site = \"none\"\nsecure = §\"never\""),
            "pool.sticky.secure is \"never\", but browsers refuse a cookie with same_site \"none\" that is not secure: write secure = \"auto\" or \"always\"",
        ),
    ] {
        assert_problem(&marked, message);
    }
    config(&second_listener("[::1]:8888").replace('§', ""));
    config(
        &minimal_but("127.0.0.1:8888", "127.0.0.1:0")
            .replace("[[pool]]", "[[listener]]\naddress = \"127.0.0.1:0\"\n[[pool]]"),
    );
}

#[test]
fn syntax_errors_cause_no_follow_up_errors() {
    for (marked, message) in [
        ("[server§\nthreads = 1\n[[listener]]\n", "this is not TOML: unclosed table, expected `]`"),
        (
            "[server]\nthreads = 1\n§threads = 2\n[[listener]]\naddress = \"127.0.0.1:8888\"\n[[pool]]\nname = \"a\"\nbackends = []\n[[route]]\npool = \"a\"",
            "threads is written twice: remove one of the two",
        ),
        ("[log]\nlevel = \"info§\nformat = 7\n", "this is not TOML: invalid basic string, expected `\"`"),
        ("[log]\nlevel = \"info\"\n[§log]\nformat = 7\n", "log is written twice: remove one of the two"),
        ("[log]\n§= 3", "this is not TOML: unquoted keys cannot be empty"),
    ] {
        let offset = marked.find('§').expect("a mark");
        let found = problems(&marked.replace('§', ""));
        assert_eq!(found.len(), 1, "{marked}\n{found:?}");
        assert_eq!(found[0].position, Some(reader::position(marked, offset)), "{marked}");
        assert!(found[0].message.starts_with(message), "{marked}\n{}", found[0].message);
    }
}

#[test]
fn missing_quotes_hide_no_other_problem() {
    let text = minimal_with("pool", "algorithm = least-connections\nretries = 17\nconnect_timeout = 2s");
    let messages: Vec<_> = problems(&text).iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "5:13: least-connections is not TOML: write it in quotes, \"least-connections\"",
            "6:11: pool.retries is 17: write a whole number from 0 to 16",
            "7:19: 2s is not TOML: write it in quotes, \"2s\"",
        ]
    );
}

#[test]
fn all_problems_are_reported_at_once_in_file_order() {
    let text = "[server]
threads = \"two\"
[[listener]]
adress = \"0.0.0.0:8888\"
[admin]
address = \"0.0.0.0:9000\"
[[pool]]
name = \"app\"
algorithm = \"fastest\"
backends = [\"web1:80\", \"web2\", { address = \"web3:80\", weight = 0 }]
probe = { interval = \"1s\", timeout = \"2s\", path = \"up\" }
[[pool]]
name = \"app\"
backends = []
[[route]]
path = \"/\"
pool = \"ap\"
[[route]]
path = \"api\"
";
    let positions: Vec<_> = problems(text).iter().map(|p| p.position.map(|p| (p.line, p.column))).collect();
    let expected = [
        (2, 11),
        (3, 1),
        (4, 1),
        (6, 11),
        (9, 13),
        (10, 24),
        (10, 64),
        (11, 38),
        (11, 51),
        (13, 8),
        (17, 8),
        (18, 1),
        (19, 8),
    ];
    assert_eq!(positions, expected.map(Some));
}

#[test]
fn columns_count_characters() {
    let inline = "log = { level = \"info\", format = §'ä' }\n".to_owned() + MINIMAL;
    assert_problem(&inline, "log.format is 'ä': write one of \"text\", \"json\"");
    assert_eq!(reader::position("\u{feff}äß\n€x", 11), Position { line: 2, column: 2 });
    assert_eq!(reader::position("ab", 99), Position { line: 1, column: 3 });
}

#[test]
fn long_values_are_shortened() {
    let text = minimal_with("log", &format!("level = \"{}\"", "x".repeat(5000)));
    let message = &problems(&text)[0].message;
    assert!(message.len() < 200 && message.contains("xxx…: write one of"), "{message}");
}

/// A folder with the files of a configuration.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (name, bytes) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, bytes).expect("written");
    }
    folder
}

fn first_problem(folder: &TempDir, text: &str) -> Option<String> {
    let problems = read(text, &folder.path().join("evenkeel.toml")).err()?;
    assert_eq!(problems.len(), 1, "{problems:?}");
    Some(problems[0].message.replace(&format!("{}/", folder.path().display()), ""))
}

#[test]
fn tokens_are_read_and_must_be_long_and_printable() {
    let folder = folder(&[
        ("good", b"0123456789abcdef\n"),
        ("windows", b"0123456789abcdef\r\n"),
        ("short", b"hunter2\n"),
        ("empty", b""),
        ("spaces", b"0123456789 abcdef"),
        ("long", &[b'x'; 9000]),
    ]);
    let text = |file: &str| minimal_with("admin", &format!("address = \"0.0.0.0:8889\"\ntoken_file = \"{file}\""));
    let path = folder.path().join("evenkeel.toml");
    for file in ["good", "windows"] {
        let admin = read(&text(file), &path).expect("valid").admin;
        assert_eq!(admin.token.expect("a token").expose(), b"0123456789abcdef");
    }
    for (file, fix) in [
        ("none", "the path of a file that can be read; none: No such file or directory (os error 2)"),
        (
            "short",
            "the path of a file with at least 16 random characters, made for example with \"openssl rand -hex 32\"; short has 7",
        ),
        (
            "empty",
            "the path of a file with at least 16 random characters, made for example with \"openssl rand -hex 32\"; empty has 0",
        ),
        ("spaces", "the path of a file with one line of letters, digits and punctuation, without spaces"),
        ("long", "the path of a file of at most 4096 bytes; long has more"),
    ] {
        let expected = format!("admin.token_file is \"{file}\": write {fix}");
        assert_eq!(first_problem(&folder, &text(file)), Some(expected));
    }
}

#[test]
fn sticky_secrets_may_be_any_bytes() {
    let folder = folder(&[("secret", b"\0\xff234567 9abcdef")]);
    let text = minimal_with("pool.sticky", "secret_file = \"secret\"");
    let config = read(&text, &folder.path().join("evenkeel.toml")).expect("valid");
    let secret = config.pools[0].settings.sticky.as_ref().and_then(|sticky| sticky.secret.clone());
    assert_eq!(secret.expect("a secret").expose(), b"\0\xff234567 9abcdef");
}

/// Created with `openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out key.pem` and
/// `openssl req -x509 -key key.pem -subj /CN=localhost -days 36500 -out cert.pem`.
#[test]
fn certificates_and_keys_must_exist_and_match() {
    let folder = folder(&[
        ("cert.pem", include_bytes!("test-data/cert.pem")),
        ("key.pem", include_bytes!("test-data/key.pem")),
        ("other-key.pem", include_bytes!("test-data/other-key.pem")),
        ("broken.pem", b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n"),
        ("false.pem", b"-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n"),
        ("text", b"nothing"),
    ]);
    let text = |certificate: &str, key: &str| {
        minimal_with("listener", &format!("tls = {{ certificate = \"{certificate}\", key = \"{key}\" }}"))
    };
    assert_eq!(first_problem(&folder, &text("cert.pem", "key.pem")), None);
    let absent = "none cannot be read: No such file or directory (os error 2)";
    for (certificate, key, message) in [
        ("none", "key.pem", format!("certificate: {absent}")),
        ("", "key.pem", "certificate is \"\": write the path of a PEM file".to_owned()),
        ("text", "key.pem", "certificate: text has no certificate: it must be a PEM file, the leaf certificate first".to_owned()),
        ("broken.pem", "key.pem", "certificate: broken.pem is not a valid PEM file: a section is not valid base64".to_owned()),
        ("false.pem", "key.pem", "certificate: false.pem holds something that is not an X.509 certificate".to_owned()),
        ("key.pem", "key.pem", "certificate: key.pem has a key and no certificate".to_owned()),
        ("cert.pem", "cert.pem", "key: there is no private key for cert.pem: put it into cert.key or into the same file".to_owned()),
        ("cert.pem", "none", format!("key: {absent}")),
        ("cert.pem", "other-key.pem", "key: the key in other-key.pem does not belong to the first certificate in cert.pem: name the key that it was made for, and put the leaf certificate first".to_owned()),
    ] {
        assert_eq!(first_problem(&folder, &text(certificate, key)), Some(format!("listener.tls.{message}")));
    }
}

#[test]
fn files_that_cannot_be_read_as_text_are_problems() {
    let folder = folder(&[("latin1.toml", b"[log]\n# \xe9t\xe9\n"), ("evenkeel.toml", MINIMAL.as_bytes())]);
    let load = |name: &str| load(&folder.path().join(name));
    assert!(load("evenkeel.toml").is_ok());
    assert_eq!(load("latin1.toml").expect_err("not UTF-8")[0].position, Some(Position { line: 2, column: 3 }));
    let absent = load("absent.toml").expect_err("absent");
    assert_eq!(absent[0].message, "the file cannot be read: No such file or directory (os error 2)");
}

/// Every value of `default.toml` except tables, with its name.
pub(super) fn leaves<'t>(table: &'t DeTable<'t>, path: &str, found: &mut Vec<(String, &'t Spanned<DeValue<'t>>)>) {
    for (key, value) in table {
        let path = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
        match value.get_ref() {
            DeValue::Table(inner) => leaves(inner, &path, found),
            DeValue::Array(elements) if elements.first().is_some_and(|first| first.get_ref().is_table()) => {
                for inner in elements.iter().filter_map(|element| element.get_ref().as_table()) {
                    leaves(inner, &path, found);
                }
            }
            _ => found.push((path, value)),
        }
    }
}

/// Every key of `default.toml` with a value or an example, such as `pool.probe.path`.
pub(crate) fn keys() -> BTreeSet<String> {
    let with_examples = with_examples();
    let table = DeTable::parse(&with_examples).expect("valid");
    let mut found = Vec::new();
    leaves(table.get_ref(), "", &mut found);
    found.into_iter().map(|(key, _)| key).collect()
}

#[test]
fn every_key_of_default_toml_is_read() {
    let with_examples = template::with_examples();
    let table = DeTable::parse(&with_examples).expect("valid");
    let mut keys = Vec::new();
    leaves(table.get_ref(), "", &mut keys);
    assert!(keys.len() > 150, "{}", keys.len());
    for (path, value) in keys {
        let mut text = with_examples.clone();
        text.replace_range(value.span(), "1979-05-27");
        let expected = (Some(reader::position(&with_examples, value.span().start)), format!("{path} is 1979-05-27: "));
        let named = |p: &Problem| p.position == expected.0 && p.message.starts_with(&expected.1);
        let found = read(&text, Path::new("/etc/evenkeel.toml")).err().unwrap_or_default();
        assert!(found.iter().any(named), "{expected:?} is not among {found:#?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn no_text_panics(text in "\\PC{0,200}|[\\[\\]{}=\",.#a-z0-9\n \t-]{0,120}") {
        check_positions(&text);
    }

    #[test]
    fn no_mutation_of_the_defaults_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, "[\\[\\]{}=\",.#a-z0-9\n -]{0,8}"), 1..6),
    ) {
        let mut text = template::with_examples();
        for (at, removed, inserted) in edits {
            let start = text.floor_char_boundary(at.index(text.len().max(1)));
            let end = text.floor_char_boundary(start.saturating_add(removed).min(text.len())).max(start);
            text.replace_range(start..end, &inserted);
        }
        check_positions(&text);
    }
}

/// Checks that the problems of each file are in order, and those of `text` within it. A mutation may include an
/// existing file.
fn check_positions(text: &str) {
    let Err(found) = read(text, Path::new("/etc/evenkeel.toml")) else { return };
    assert!(!found.is_empty());
    assert!(found.is_sorted_by(|a, b| a.file != b.file || a.position <= b.position), "{found:?}");
    for Position { line, column } in found.iter().filter(|problem| problem.file.is_none()).filter_map(|p| p.position) {
        let width = text.split('\n').nth(line - 1).map(|line| line.chars().count());
        assert!(width.is_some_and(|width| column <= width + 1), "{line}:{column} is outside of\n{text}");
    }
}
