//! A configuration as a file that can be read again, made of the JSON by which the admin API shows it, so that the
//! command line can write what a running balancer has.

use std::fmt::Write;

use serde_json::{Map, Value};

use crate::config::difference::seconds;

/// Every setting of a configuration as TOML. Secrets are not in it, but the files that hold them are.
pub fn write(config: &Value) -> String {
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
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn write_settings(text: &mut String, section: &str, settings: &Map<String, Value>) {
    let mut sections = Vec::new();
    for (key, value) in settings {
        match (key.as_str(), value) {
            ("tls" | "probe" | "sticky", Value::Null) => {}
            ("probe", Value::Object(probe)) => sections.push((key, with_kind(probe))),
            ("tls" | "sticky" | "ejection", Value::Object(inner)) => sections.push((key, inner.clone())),
            ("backends", Value::Array(backends)) => write_backends(text, backends),
            // Where changes are kept, or that they are not.
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

/// A backend that is being removed is not wanted any more.
fn write_backends(text: &mut String, backends: &[Value]) {
    text.push_str("backends = [\n");
    for backend in backends.iter().filter(|backend| backend["state"] != "removing") {
        let _ = writeln!(
            text,
            "    {{ address = {}, weight = {}, state = {} }},",
            backend["address"], backend["weight"], backend["state"]
        );
    }
    text.push_str("]\n");
}

/// A probe with the settings of its kind beside the others.
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
        ("max_connections" | "min_rate" | "max_body_bytes", Value::Null) => "0".to_owned(),
        ("max_age", Value::Null) => "\"0s\"".to_owned(),
        (_, Value::Null) => "\"\"".to_owned(),
        // The ranges of a probe's statuses.
        ("status", Value::Array(ranges)) => {
            let range = |range: &Value| match (&range[0], &range[1]) {
                (low, high) if low == high => low.to_string(),
                (low, high) => format!("{low}-{high}"),
            };
            format!("\"{}\"", ranges.iter().map(range).collect::<Vec<_>>().join(","))
        }
        // A file of the access log.
        (_, Value::Object(file)) => file.get("path").map_or("\"\"".to_owned(), Value::to_string),
        // Only durations are written with a fraction; they are whole milliseconds.
        (_, Value::Number(number)) if number.is_f64() => {
            format!("\"{}\"", seconds(number.as_f64().unwrap_or_default()))
        }
        // JSON's strings, numbers, booleans and arrays of these are TOML's, but for the escape of a slash, which is never
        // written, and U+007F.
        (_, value) => value.to_string().replace('\u{7f}', "\\u007F"),
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
    fn what_is_written_reads_back_the_same() {
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
address = \"127.0.0.1:0\"
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
