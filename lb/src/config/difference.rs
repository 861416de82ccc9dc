//! Describes how two configurations differ, independently of the settings' names: both are compared in the JSON form of
//! the admin API. Elements of lists are matched by name, so that an additional pool does not appear as a change of all.

use std::borrow::Cow;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Config, PoolConfig};

/// Every setting that differs, such as `pool app: response_timeout 30s instead of 60s`.
pub(crate) fn difference(before: &Config, after: &Config) -> Vec<String> {
    let value = |config: &Config| serde_json::to_value(config).unwrap_or_default();
    let mut differences = Vec::new();
    compare("", &value(before), &value(after), &mut differences);
    for (was, is) in
        before.pools.iter().flat_map(|was| after.pools.iter().find(|is| is.name == was.name).map(|is| (was, is)))
    {
        contents(was, is, &mut differences);
    }
    if differences.is_empty() && before != after {
        differences.push("another text in a file that is named, or in the environment".to_owned());
    }
    differences
}

/// Files that a pool still names and that have other content.
fn contents(before: &PoolConfig, after: &PoolConfig, differences: &mut Vec<String>) {
    let mut tell = |key: &str, path: &Option<PathBuf>| {
        let what = path.as_ref().map_or("the CAs of the system".to_owned(), |path| path.display().to_string());
        differences.push(format!("pool {}: {key}: {what} with other content", after.name));
    };
    if let (Some(was), Some(is)) = (&before.settings.transport.tls, &after.settings.transport.tls) {
        let (trusted, trusts) = (&was.trust, &is.trust);
        for (key, paths, has_changed) in [
            ("tls.ca", [&was.ca, &is.ca], trusted.roots != trusts.roots),
            ("tls.certificate", [&was.certificate, &is.certificate], trusted.chain != trusts.chain),
            ("tls.key", [&was.key, &is.key], trusted.key != trusts.key),
        ] {
            if has_changed && paths[0] == paths[1] {
                tell(key, paths[1]);
            }
        }
    }
    if let (Some(was), Some(is)) = (&before.settings.sticky, &after.settings.sticky)
        && was.secret_file == is.secret_file
        && was.secret != is.secret
    {
        tell("sticky.secret_file", &is.secret_file);
    }
}

/// Like [`difference`], for one section.
pub(crate) fn difference_of<T: Serialize>(section: &str, before: &T, after: &T) -> Vec<String> {
    let value = |config: &T| serde_json::to_value(config).unwrap_or_default();
    let mut differences = Vec::new();
    compare(&format!("[{section}]"), &value(before), &value(after), &mut differences);
    differences
}

fn compare(path: &str, before: &Value, after: &Value, differences: &mut Vec<String>) {
    match (before, after) {
        _ if before == after => {}
        (Value::Object(before), Value::Object(after)) => {
            objects(path, &listed(before, after), &listed(after, before), differences);
        }
        (Value::Array(before), Value::Array(after)) if are_named(before) && are_named(after) => {
            lists(path, before, after, differences);
        }
        _ => differences.push(format!("{path} {} instead of {}", shown(after), shown(before))),
    }
}

/// A listener with one address as one with a list, if `other` has a list: the two keys are one setting.
fn listed<'a>(part: &'a Map<String, Value>, other: &Map<String, Value>) -> Cow<'a, Map<String, Value>> {
    match part.get("address") {
        Some(address) if other.contains_key("addresses") => {
            let mut listed = part.clone();
            listed.remove("address");
            listed.insert("addresses".to_owned(), Value::Array(vec![address.clone()]));
            Cow::Owned(listed)
        }
        _ => Cow::Borrowed(part),
    }
}

fn objects(path: &str, before: &Map<String, Value>, after: &Map<String, Value>, differences: &mut Vec<String>) {
    let keys = before.keys().chain(after.keys().filter(|key| !before.contains_key(*key)));
    for key in keys {
        let path = match (path, key.as_str()) {
            // List elements are described in the singular.
            ("", "pools" | "routes" | "listeners" | "sites") => key.trim_end_matches('s').to_owned(),
            (path, "backends") => format!("{path}: backend"),
            (path, "routes") => format!("{path}: route"),
            ("", key) => format!("[{key}]"),
            // A setting of a named element, a section, or a section within.
            (path, key) if path.ends_with(']') => format!("{path} {key}"),
            (path, key) if path.contains(": ") => format!("{path}.{key}"),
            (path, key) => format!("{path}: {key}"),
        };
        compare(&path, before.get(key).unwrap_or(&Value::Null), after.get(key).unwrap_or(&Value::Null), differences);
    }
}

fn lists(path: &str, before: &[Value], after: &[Value], differences: &mut Vec<String>) {
    let find = |list: &[Value], name: &str| list.iter().position(|part| name_of(part).as_deref() == Some(name));
    for part in before {
        let Some(name) = name_of(part) else { continue };
        match find(after, &name).and_then(|index| after.get(index)) {
            Some(now) => compare(&format!("{path} {name}"), part, now, differences),
            None => differences.push(format!("{path} {name} removed")),
        }
    }
    for name in after.iter().filter_map(name_of) {
        if find(before, &name).is_none() {
            differences.push(format!("{path} {name} added"));
        }
    }
}

fn are_named(list: &[Value]) -> bool {
    list.iter().all(|part| name_of(part).is_some())
}

fn name_of(part: &Value) -> Option<String> {
    let text = |key| part.get(key).and_then(Value::as_str);
    if let (Some(host), Some(path)) = (text("host"), text("path")) {
        return Some(format!("{host}{path}"));
    }
    text("name").or_else(|| text("address")).map(str::to_owned)
}

/// A value in the notation of the file. Only durations have a fraction.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => seconds(number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// A duration in the notation of the file: in seconds, or else in milliseconds.
pub(crate) fn seconds(seconds: f64) -> String {
    let milliseconds = (seconds * 1000.0).round();
    if milliseconds % 1000.0 == 0.0 { format!("{}s", milliseconds / 1000.0) } else { format!("{milliseconds}ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        crate::config::toml::read(text, std::path::Path::new("/evenkeel.toml")).expect("valid")
    }

    const BEFORE: &str = "
[[listener]]
address = \"127.0.0.1:8888\"
[[pool]]
name = \"app\"
backends = [\"a:1\", \"b:1\"]
[[pool]]
name = \"old\"
backends = []
[[route]]
pool = \"app\"
";

    #[test]
    fn each_changed_setting_is_reported_with_both_values() {
        let after = "
[server]
trusted_proxies = [\"10.0.0.0/8\"]
[[listener]]
address = \"127.0.0.1:8888\"
header_timeout = \"1500ms\"
[[pool]]
name = \"new\"
backends = []
[[pool]]
name = \"app\"
algorithm = \"ip-hash\"
response_timeout = \"30s\"
retry_timeout = \"60s\"
backends = [{ address = \"b:1\", weight = 3 }, \"c:1\"]
ejection = { consecutive_failures = 9 }
[[route]]
path = \"/api\"
pool = \"app\"
";
        let differences = difference(&config(BEFORE), &config(after));
        for expected in [
            "[server] trusted_proxies [\"10.0.0.0/8\"] instead of []",
            "listener 127.0.0.1:8888: header_timeout 1500ms instead of 10s",
            "pool app: algorithm ip-hash instead of weighted",
            "pool app: backend a:1 removed",
            "pool app: backend b:1.weight 3 instead of 1",
            "pool app: backend c:1 added",
            "pool app: response_timeout 30s instead of 60s",
            "pool app: ejection.consecutive_failures 9 instead of 5",
            "pool old removed",
            "pool new added",
            "route / removed",
            "route /api added",
        ] {
            assert!(differences.iter().any(|line| line == expected), "{expected:?} in {differences:#?}");
        }
        assert_eq!(differences.len(), 12, "{differences:#?}");
    }

    // Two lines said "address none instead of …" and "addresses … instead of none".
    #[test]
    fn another_address_of_a_listener_is_one_difference() {
        let [one, two] = ["address = \"127.0.0.1:1\"", "addresses = [\"127.0.0.1:1\", \"127.0.0.1:2\"]"]
            .map(|key| config(&BEFORE.replace("address = \"127.0.0.1:8888\"", &format!("name = \"web\"\n{key}"))));
        let (one_shown, two_shown) = ("[\"127.0.0.1:1\"]", "[\"127.0.0.1:1\",\"127.0.0.1:2\"]");
        assert_eq!(difference(&one, &two), [format!("listener web: addresses {two_shown} instead of {one_shown}")]);
        assert_eq!(difference(&two, &one), [format!("listener web: addresses {one_shown} instead of {two_shown}")]);
    }

    #[test]
    fn files_with_changed_content_are_reported_by_name() {
        const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/toml/test-data");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let put = |name: &str, from: &str, before: &str| {
            let text = std::fs::read_to_string(std::path::Path::new(DATA).join(from)).expect("our file");
            std::fs::write(folder.path().join(name), format!("{before}{text}")).expect("our folder");
        };
        let here = folder.path().display();
        let tls = format!("tls = {{ ca = \"{here}/ca.pem\", certificate = \"{here}/c.pem\", key = \"{here}/k.pem\" }}");
        let sticky = format!("sticky = {{ secret_file = \"{here}/s\" }}");
        let text = BEFORE.replace("backends = [\"a:1\", \"b:1\"]", &format!("backends = [\"a:1\"]\n{tls}\n{sticky}"));
        let [one, other] = ["first", "other"].map(|line| format!("{line}{}\n", "x".repeat(32)));
        let put_all = |certificates: &str, key: &str| {
            put("ca.pem", "cert.pem", certificates);
            put("c.pem", "cert.pem", certificates);
            put("k.pem", "key.pem", key);
        };
        put_all("", "");
        std::fs::write(folder.path().join("s"), one).expect("our folder");
        let before = config(&text);
        let two = std::fs::read_to_string(std::path::Path::new(DATA).join("cert.pem")).expect("our file");
        put_all(&two, "Renewed\n");
        std::fs::write(folder.path().join("s"), other).expect("our folder");
        let differences = difference(&before, &config(&text));
        let expected =
            [("tls.ca", "ca.pem"), ("tls.certificate", "c.pem"), ("tls.key", "k.pem"), ("sticky.secret_file", "s")];
        let expected = expected.map(|(key, file)| format!("pool app: {key}: {here}/{file} with other content"));
        assert_eq!(differences, expected);
    }

    #[test]
    fn equal_configurations_have_no_difference() {
        assert_eq!(difference(&config(BEFORE), &config(BEFORE)), [""; 0]);
    }

    #[test]
    fn differences_in_sites_name_site_and_route() {
        let of = |site: &str| {
            let text = format!("{BEFORE}[[site]]\nhosts = [\"a.example\"]\n{site}");
            crate::config::toml::read(&text, std::path::Path::new("/evenkeel.toml")).expect("valid")
        };
        let before =
            of("[[site.route]]\npath = \"/x\"\npool = \"app\"\n[[site.route]]\npath = \"/y\"\npool = \"old\"\n");
        let after = of(
            "retries = 1\n[[site.route]]\npath = \"/x\"\npool = \"app\"\nresponse_timeout = \"3s\"\n[[site.route]]\npath = \"/z\"\npool = \"app\"\n",
        );
        let differences = difference(&before, &after);
        let expected = [
            "site a.example: retries 1 instead of none",
            "site a.example: route a.example/x.response_timeout 3s instead of none",
            "site a.example: route a.example/x.retries 1 instead of none",
            "site a.example: route a.example/y removed",
            "site a.example: route a.example/z added",
        ];
        assert_eq!(differences, expected);
        assert_eq!(difference(&config(BEFORE), &before), ["site a.example added"]);
    }
}
