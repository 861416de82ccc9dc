//! The JSON schema of `evenkeel.toml`, for editors. Keys, defaults and descriptions come from `default.toml`. This file
//! adds what that one cannot express: allowed words, ranges, and alternative forms.

use serde_json::{Map, Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::template::{self, Template};
use super::values;

const DURATION: &str = "^\\s*[0-9]+(ms|s|m|h)\\s*$|\\$\\{env:";
const SIZE: &str = "^\\s*[0-9]+\\s*(B|KB|MB|GB|KiB|MiB|GiB)\\s*$|\\$\\{env:";

/// The allowed words of a key. `site.x` also stands for `site.route.x`.
const WORDS: &[(&str, &[&str])] = &[
    ("server.forwarded_by", &["x-forwarded", "forwarded"]),
    ("listener.half_close", &["cancel", "answer"]),
    ("listener.ambiguous_names", &["drop", "pass", "reject"]),
    ("listener.non_ascii_targets", &["reject", "pass"]),
    ("listener.tls.unknown_names", &["default", "refuse"]),
    ("listener.tls.profile", &["intermediate", "modern"]),
    ("listener.tls.client_certificates.mode", &["off", "optional", "required"]),
    ("log.level", &["error", "warn", "info", "debug", "trace"]),
    ("log.format", &["text", "json"]),
    ("access_log.format", &["json", "combined"]),
    ("pool.algorithm", &["round-robin", "weighted", "least-connections", "ip-hash"]),
    ("pool.backends.state", &["active", "draining", "down"]),
    ("pool.addresses", &["share", "each"]),
    ("pool.probe.type", &["http", "tcp"]),
    ("pool.proxy_protocol", &["off", "v1", "v2"]),
    ("pool.sticky.same_site", &["lax", "strict", "none"]),
    ("pool.sticky.secure", &["auto", "always", "never"]),
    ("site.preset", &["secure-headers", "none"]),
    ("site.access_log.escape", &["default", "json", "none"]),
    ("site.cookies.same_site", &["lax", "strict", "none"]),
];

/// Minimum and maximum of a number. Keys as in [`WORDS`].
const RANGES: &[(&str, i64, i64)] = &[
    ("server.resolver.attempts", 0, 10),
    ("server.threads", 0, 1024),
    ("server.max_connections", 0, 10_000_000),
    ("server.max_handshakes", 0, 10_000_000),
    ("server.idle_connections", 0, 1_000_000),
    ("pool.backends.max_connections", 0, u32::MAX as i64),
    ("listener.max_request_line_bytes", 256, 1 << 20),
    ("listener.max_head_bytes", 256, 1 << 20),
    ("listener.max_fields", 1, 4096),
    ("listener.min_rate", 0, u32::MAX as i64),
    ("pool.retries", 0, 16),
    ("pool.retry_body_bytes", 0, 65_536),
    ("pool.max_head_bytes", 256, 1 << 20),
    ("pool.max_fields", 1, 4096),
    ("pool.panic_threshold", 0, 100),
    ("pool.backends.weight", 1, 1000),
    ("pool.probe.rise", 1, 100),
    ("pool.probe.fall", 1, 100),
    ("pool.ejection.consecutive_failures", 0, 1000),
    ("pool.ejection.max_percent", 0, 100),
    ("site.min_rate", 0, u32::MAX as i64),
    ("site.retries", 0, 16),
    ("site.retry_body_bytes", 0, 65_536),
    ("site.respond.status", 200, 599),
    ("site.access_log.share", 0, 1),
    ("site.access_log.or_share", 0, 1),
];

/// The schema (JSON Schema, draft 2020-12).
pub(crate) fn schema() -> Value {
    let text = template::with_examples();
    let table = DeTable::parse(&text).expect("a test reads default.toml");
    let mut schema = object(&Template::of(table.get_ref()), "");
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "evenkeel.toml".into();
    schema
}

/// A table.
fn object(template: &Template<'_>, path: &str) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (key, child) in template.children.iter().filter(|(key, _)| *key != "*") {
        let path = if path.is_empty() { (*key).to_owned() } else { format!("{path}.{key}") };
        let mut schema = property(child, &path.replacen("site.route.", "site.", 1));
        if let Some(explained) = child.value.and_then(template::explanation) {
            if explained.contains("Required: ") {
                required.push(*key);
            }
            schema["description"] = explained.into();
        }
        if let (true, Some(default)) = (child.is_default, child.value.and_then(scalar)) {
            schema["default"] = default;
        }
        properties.insert((*key).to_owned(), schema);
    }
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = required.into();
    }
    schema
}

fn property(template: &Template<'_>, path: &str) -> Value {
    if let Some((_, words)) = WORDS.iter().find(|(known, _)| *known == path) {
        return json!({ "enum": words });
    }
    let range = RANGES.iter().find(|(known, ..)| *known == path).map(|(_, min, max)| (*min, *max));
    let ranged = |mut schema: Value| {
        if let Some((min, max)) = range {
            (schema["minimum"], schema["maximum"]) = (min.into(), max.into());
        }
        schema
    };
    let text = || json!({ "type": "string" });
    let one_or_several = |one: &Value| json!({ "anyOf": [one, { "type": "array", "items": one }] });
    let any = || template.child("*").map(|any| object(any, "*")).unwrap_or_default();
    let key = path.rsplit('.').next().unwrap_or_default();
    match path {
        "values" => return json!({ "type": "object", "additionalProperties": any() }),
        "*.cases" | "*.networks" | "site.cookies.domain" | "site.cookies.path" => return map(&text()),
        "*.shares" => return map(&json!({ "type": "number", "minimum": 0.01, "maximum": 100 })),
        "*.status" => {
            return json!({ "anyOf": [{ "type": "integer", "minimum": 200, "maximum": 599 }, { "const": "page" }] });
        }
        "site.redirect.status" => return json!({ "enum": [301, 302, 303, 307, 308] }),
        "pool.backends" => {
            return json!({ "type": "array", "items": { "anyOf": [text(), object(template, path)] } });
        }
        "listener.tls.certificates" => {
            let each = json!({ "type": "array", "items": { "anyOf": [text(), object(template, path)] } });
            return json!({ "anyOf": [text(), each] });
        }
        "listener.tls.alpn" => return json!({ "type": "array", "items": { "enum": ["h2", "http/1.1"] } }),
        "pool.ejection.statuses" => {
            let code = json!({ "type": ["integer", "string"], "minimum": 500, "maximum": 599 });
            return json!({ "anyOf": [text(), { "type": "array", "items": code }] });
        }
        "site.error_pages" => {
            let mut pages = json!({ "type": "object", "additionalProperties": { "anyOf": [text(), any()] } });
            pages["properties"] = json!({ "keep_outer": { "type": "boolean" } });
            return pages;
        }
        "pool.tls" => return json!({ "anyOf": [{ "type": "boolean" }, object(template, path)] }),
        "site.redirect" => return json!({ "anyOf": [text(), object(template, path)] }),
        "site.request_headers" | "site.response_headers" => return one_or_several(&object(template, path)),
        "site.location" => {
            return json!({ "anyOf": [{ "enum": ["auto", "off"] }, one_or_several(&object(template, path))] });
        }
        "site.access_log" => return json!({ "anyOf": [text(), one_or_several(&object(template, path))] }),
        "site.cors" => {
            let mut cors = object(template, path);
            // An empty table overrides the site's.
            cors.as_object_mut().map(|cors| cors.remove("required"));
            return cors;
        }
        _ => {}
    }
    let is_of_condition = path.starts_with("site.when.") || path.starts_with("site.access_log.when.");
    match key {
        "set" | "append" | "default" if path.contains("_headers.") => return map(&field()),
        "add" if path.contains("_headers.") => return map(&one_or_several(&field())),
        "headers" | "cookies" | "query" | "values" if is_of_condition => return map(&test()),
        _ if key.ends_with("_bytes") || key == "min_rate" => {
            return ranged(json!({ "type": ["integer", "string"], "minimum": 0, "pattern": SIZE }));
        }
        _ => {}
    }
    match template.value.map(Spanned::get_ref) {
        Some(DeValue::String(text)) if is_duration(text) => json!({ "type": "string", "pattern": DURATION }),
        Some(DeValue::Integer(_)) => ranged(json!({ "type": "integer" })),
        Some(DeValue::Float(_)) => ranged(json!({ "type": "number" })),
        Some(DeValue::Boolean(_)) => json!({ "type": "boolean" }),
        Some(DeValue::Table(_)) => object(template, path),
        Some(DeValue::Array(elements)) => match elements.first().is_some_and(|first| first.get_ref().is_table()) {
            true => json!({ "type": "array", "items": object(template, path) }),
            false => json!({ "type": "array", "items": text() }),
        },
        _ => text(),
    }
}

fn map(of: &Value) -> Value {
    json!({ "type": "object", "additionalProperties": of })
}

/// The value of a field.
fn field() -> Value {
    let file = json!({
        "type": "object",
        "properties": { "file": { "type": "string" } },
        "required": ["file"],
        "additionalProperties": false,
    });
    json!({ "anyOf": [{ "type": "string" }, file] })
}

/// The comparison of a test.
fn test() -> Value {
    let is = json!([{ "type": ["string", "boolean"] }, { "type": "array", "items": { "type": "string" } }]);
    let not = json!({
        "type": "object",
        "properties": { "not": { "anyOf": is } },
        "required": ["not"],
        "additionalProperties": false,
    });
    json!({ "anyOf": [is[0], is[1], not] })
}

fn is_duration(text: &str) -> bool {
    values::duration_in(text, std::time::Duration::ZERO, values::DAY * 400).is_ok()
}

fn scalar(value: &Spanned<DeValue<'_>>) -> Option<Value> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.as_ref().into()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok().map(Value::from),
        DeValue::Boolean(flag) => Some((*flag).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
