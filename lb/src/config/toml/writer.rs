//! Writes a configuration as a file that can be read again, from the JSON of the admin API, so that the command line
//! can save the configuration of a running balancer.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::config::difference::seconds;

/// Every setting of a configuration as TOML. Secrets are not included, but the files that contain them are named.
pub(crate) fn write(config: &Value) -> String {
    let mut text = String::new();
    for section in ["server", "admin", "state", "log", "access_log", "metrics"] {
        if let Some(settings) = config[section].as_object() {
            let _ = writeln!(text, "[{section}]");
            write_settings(&mut text, section, settings);
        }
    }
    for (list, section) in [("listeners", "listener"), ("pools", "pool"), ("routes", "route")] {
        for settings in config[list].as_array().into_iter().flatten().filter_map(Value::as_object) {
            let _ = writeln!(text, "[[{section}]]");
            write_settings(&mut text, section, settings);
        }
    }
    if let Some(tables) = config["values"].as_object().filter(|tables| !tables.is_empty()) {
        text.push_str("[values]\n");
        for (name, table) in tables {
            let _ = writeln!(text, "{name} = {}", inline(&value_table(table)));
        }
        text.push('\n');
    }
    for site in config["sites"].as_array().into_iter().flatten().filter_map(Value::as_object) {
        text.push_str("[[site]]\n");
        write_rules(&mut text, site, None);
        for route in site.get("routes").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object) {
            text.push_str("\n[[site.route]]\n");
            write_rules(&mut text, route, Some(site));
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn write_settings(text: &mut String, section: &str, settings: &Map<String, Value>) {
    let mut sections = Vec::new();
    for (key, value) in settings {
        match (key.as_str(), value) {
            ("tls" | "probe" | "sticky" | "proxy_protocol", Value::Null) => {}
            ("probe", Value::Object(probe)) => sections.push((key, with_kind(probe))),
            ("tls" | "sticky" | "ejection" | "resolver", Value::Object(inner)) => sections.push((key, inner.clone())),
            ("backends", Value::Array(backends)) => write_backends(text, backends),
            ("certificates", Value::Array(_)) | ("client_certificates" | "proxy_protocol", Value::Object(_)) => {
                let _ = writeln!(text, "{key} = {}", inline(value));
            }
            // The state file, or that there is none.
            ("file", Value::Null) if section == "state" => text.push_str("persist = false\n"),
            _ => {
                let _ = writeln!(text, "{key} = {}", written(key, value));
            }
        }
    }
    for (key, inner) in sections {
        let _ = writeln!(text, "[{section}.{key}]");
        write_settings(text, key, &inner);
    }
    if !text.ends_with("\n\n") {
        text.push('\n');
    }
}

/// A backend that is being removed is left out.
fn write_backends(text: &mut String, backends: &[Value]) {
    text.push_str("backends = [\n");
    for backend in backends.iter().filter(|backend| backend["state"] != "removing") {
        let max = backend["max_connections"].as_u64();
        let max = max.map(|max| format!(", max_connections = {max}")).unwrap_or_default();
        let _ = writeln!(
            text,
            "    {{ address = {}, weight = {}, state = {}{max} }},",
            backend["address"], backend["weight"], backend["state"]
        );
    }
    text.push_str("]\n");
}

/// A probe with the settings of its kind merged in.
fn with_kind(probe: &Map<String, Value>) -> Map<String, Value> {
    let mut settings = probe.clone();
    match settings.remove("kind") {
        Some(Value::Object(kind)) => {
            for (name, inner) in kind {
                settings.insert("type".to_owned(), name.into());
                settings.extend(inner.as_object().cloned().unwrap_or_default());
            }
        }
        Some(kind) => drop(settings.insert("type".to_owned(), kind)),
        None => {}
    }
    settings
}

fn written(key: &str, value: &Value) -> String {
    match (key, value) {
        ("max_connections" | "max_handshakes" | "min_rate" | "max_body_bytes" | "attempts", Value::Null) => {
            "0".to_owned()
        }
        ("max_age" | "timeout", Value::Null) => "\"0s\"".to_owned(),
        (_, Value::Null) => "\"\"".to_owned(),
        // The status ranges of a probe.
        ("status", Value::Array(ranges)) => {
            let range = |range: &Value| match (&range[0], &range[1]) {
                (low, high) if low == high => low.to_string(),
                (low, high) => format!("{low}-{high}"),
            };
            format!("\"{}\"", ranges.iter().map(range).collect::<Vec<_>>().join(","))
        }
        // The file of an access log.
        (_, Value::Object(file)) => file.get("path").map_or("\"\"".to_owned(), Value::to_string),
        // Only durations have a fraction; they are whole milliseconds.
        (_, Value::Number(number)) if number.is_f64() => {
            format!("\"{}\"", seconds(number.as_f64().unwrap_or_default()))
        }
        // Strings, numbers, booleans and arrays of these are the same in TOML, except the escaped slash, which is never
        // written, and U+007F.
        (_, value) => value.to_string().replace('\u{7f}', "\\u007F"),
    }
}

/// A site or a route. A route leaves out what its site has already.
fn write_rules(text: &mut String, settings: &Map<String, Value>, site: Option<&Map<String, Value>>) {
    let mut condition = Map::new();
    for (key, value) in settings {
        let outer = site.and_then(|site| site.get(key)).filter(|_| key != "name");
        let written = match (key.as_str(), value) {
            ("routes", _) => continue,
            _ if outer == Some(value) => continue,
            // Default names are generated again.
            ("name", Value::String(name)) if site.is_some() && (name.contains(' ') || name.starts_with('/')) => {
                continue;
            }
            // The site has it and the route overrides it.
            ("rewrite" | "cors", Value::Null) if outer.is_some() => Value::Object(Map::new()),
            ("preset", Value::Null) if outer.is_some() => "none".into(),
            (_, Value::Null) => continue,
            ("methods" | "networks", value) => value.clone(),
            ("tests", _) => {
                condition.insert(key.clone(), value.clone());
                continue;
            }
            ("access_log", Value::Array(rules)) if rules.is_empty() => "off".into(),
            ("access_log", Value::Array(rules)) => rules.iter().map(log_rule).collect(),
            ("cookies", Value::Object(cookies)) => {
                let pairs = |(key, value): (&String, &Value)| match value {
                    Value::Array(pairs) => (key.clone(), pairs_of(pairs)),
                    other => (key.clone(), other.clone()),
                };
                cookies.iter().map(pairs).collect::<Map<_, _>>().into()
            }
            (_, value) => value.clone(),
        };
        let _ = writeln!(text, "{key} = {}", inline_of(key, &written));
    }
    if !condition.is_empty() {
        let _ = writeln!(text, "when = {}", inline(&when(&condition)));
    }
}

/// A condition as one table.
fn when(condition: &Map<String, Value>) -> Value {
    let mut table = Map::new();
    for (key, value) in condition {
        match value {
            Value::Null => {}
            Value::Array(tests) if key == "tests" => {
                let values =
                    tests.iter().map(|test| (test["of"].as_str().unwrap_or_default().to_owned(), test_of(test)));
                table.insert("values".to_owned(), values.collect::<Map<_, _>>().into());
            }
            other => drop(table.insert(key.clone(), other.clone())),
        }
    }
    table.into()
}

fn test_of(test: &Value) -> Value {
    let is = match test {
        _ if !test["present"].is_null() => true.into(),
        _ if !test["one_of"].is_null() => test["one_of"].clone(),
        _ => match (test["equal"].as_str(), test["matches"].as_str()) {
            (Some(text), _) if text.starts_with('~') => format!("\\{text}").into(),
            (Some(text), _) => text.into(),
            (None, regex) => format!("~{}", regex.unwrap_or_default()).into(),
        },
    };
    match test["negated"] == true {
        true => [("not".to_owned(), is)].into_iter().collect::<Map<_, _>>().into(),
        false => is,
    }
}

fn log_rule(rule: &Value) -> Value {
    let mut table = rule.as_object().cloned().unwrap_or_default();
    let status = table.remove("status").filter(|status| !status.is_null());
    let mut condition = table.remove("when").and_then(|when| when.as_object().cloned()).unwrap_or_default();
    if let Some(status) = status {
        condition.insert("status".to_owned(), status);
    }
    match condition.is_empty() {
        true => drop(table.remove("or_share")),
        false => drop(table.insert("when".to_owned(), when(&condition))),
    }
    if let Some(path) = table.get("file").and_then(|file| file.get("path")).cloned() {
        table.insert("file".to_owned(), path);
    }
    table.into()
}

/// Pairs of `from` and `to`, as a table.
fn pairs_of(pairs: &[Value]) -> Value {
    let pair = |pair: &Value| (pair["from"].as_str().unwrap_or_default().to_owned(), pair["to"].clone());
    pairs.iter().map(pair).collect::<Map<_, _>>().into()
}

fn value_table(table: &Value) -> Value {
    let mut table = table.as_object().cloned().unwrap_or_default();
    if let Some(Value::Array(shares)) = table.get("shares") {
        let share = |share: &Value| (share[1].as_str().unwrap_or_default().to_owned(), share[0].clone());
        let shares: Map<_, _> = shares.iter().map(share).collect();
        table.insert("shares".to_owned(), shares.into());
    }
    table.into()
}

fn inline(value: &Value) -> String {
    inline_of("", value)
}

/// The value of `key` in one line.
fn inline_of(key: &str, value: &Value) -> String {
    match value {
        Value::Object(table) => {
            let entries = table.iter().filter(|(_, value)| !value.is_null());
            let is_shares = key == "shares";
            let entry = |(key, value): (&String, &Value)| match is_shares {
                true => format!("{} = {value}", written("", &key.as_str().into())),
                false => format!("{} = {}", written("", &key.as_str().into()), inline_of(key, value)),
            };
            format!("{{ {} }}", entries.map(entry).collect::<Vec<_>>().join(", "))
        }
        Value::Array(elements) if key != "status" => {
            format!("[{}]", elements.iter().map(|element| inline_of("", element)).collect::<Vec<_>>().join(", "))
        }
        Value::Number(number) if matches!(key, "share" | "or_share") => number.to_string(),
        other => written(key, other),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{DEFAULT, read};
    use super::*;

    fn assert_reads_back(text: &str, file: &Path) {
        let config = read(text, file).unwrap_or_else(|problems| panic!("{text}\n{problems:#?}"));
        let written = write(&serde_json::to_value(&config).expect("JSON"));
        let again = read(&written, Path::new("/elsewhere/other.toml"));
        assert_eq!(again.as_ref(), Ok(&config), "{written}");
    }

    #[test]
    fn a_written_configuration_reads_back_the_same() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("evenkeel.toml");
        for name in ["token", "read", "secret"] {
            std::fs::write(folder.path().join(name), format!("{name}-{name}-{name}-{name}-{name}")).expect("written");
        }
        let pems = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/toml/test-data");
        assert_reads_back(DEFAULT, &file);
        let durations = write(&serde_json::to_value(read(DEFAULT, &file).expect("valid")).expect("JSON"));
        assert!(durations.contains("lingering_time = \"30s\"\n"), "{durations}");
        let other = format!(
            "
[server]
threads = 3
trusted_proxies = [\"10.0.0.0/8\", \"fd00::/8\"]
max_connections = 77
resolver = {{ servers = [\"10.0.0.2\", \"[fd00::2]:5353\"], timeout = \"1500ms\", attempts = 3, min_ttl = \"100ms\" }}
[admin]
token_file = \"token\"
read_token_file = \"read\"
[state]
persist = false
[metrics]
exact_status = true
[access_log]
file = \"logs/a \\\"b\\\".log\"
[[listener]]
address = \"[::1]:8443\"
min_rate = 0
max_body_bytes = 0
lingering_time = \"1500ms\"
tls = {{ certificate = \"{pems}/cert.pem\", key = \"{pems}/key.pem\" }}
[[listener]]
addresses = [\"127.0.0.1:0\", \"[::1]:8444\"]
proxy_protocol = {{ from = [\"10.0.0.0/8\", \"::1\"] }}
[[listener]]
address = \"127.0.0.1:8443\"
[listener.tls]
certificates = [{{ certificate = \"{pems}/cert.pem\", key = \"{pems}/key.pem\" }}]
default = \"{pems}/cert.pem\"
unknown_names = \"refuse\"
profile = \"modern\"
alpn = [\"http/1.1\"]
client_certificates = {{ mode = \"optional\", ca = \"{pems}/cert.pem\" }}
watch_interval = \"0s\"
[[pool]]
name = \"a\"
backends = [{{ address = \"web1:80\", weight = 7, state = \"down\" }}, \"[::1]:80\"]
retry_timeout = \"7s\"
probe = {{ type = \"tcp\" }}
ejection = {{ statuses = \"502-504\" }}
[[pool]]
name = \"b\"
backends = []
probe = {{ host = \"example.com\", status = \"200,300-399\" }}
sticky = {{ max_age = \"1h\", secret_file = \"secret\", path = \"/shop\" }}
[[route]]
host = \"*.example.com\"
path = \"/shop\"
pool = \"b\"
[[route]]
pool = \"a\"
"
        );
        assert_reads_back(&other, &file);
        assert_reads_back(&other.replace("logs/a \\\"b\\\".log", "stdout").replace("\"tcp\"", "\"http\""), &file);
    }
}
