//! The schema against the reader: both take the same keys and words.

use std::path::Path;

use regex::Regex;

use super::super::tests::leaves;
use super::super::{DEFAULT, read};
use super::*;

/// Whether an instance fits a schema; of JSON Schema as much as ours uses, and nothing else may be used.
fn fits(schema: &Value, instance: &Value) -> bool {
    const IGNORED: &[&str] = &["description", "default", "title", "$schema"];
    let is_of = |name: &str| match name {
        "object" => instance.is_object(),
        "array" => instance.is_array(),
        "string" => instance.is_string(),
        "boolean" => instance.is_boolean(),
        "integer" => instance.is_i64() || instance.is_u64(),
        "number" => instance.is_number(),
        other => panic!("{other}"),
    };
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    schema.as_object().expect("a schema").iter().all(|(key, rule)| match key.as_str() {
        key if IGNORED.contains(&key) => true,
        "type" => rule.as_str().map_or_else(|| texts(rule).iter().any(|name| is_of(name)), is_of),
        "enum" => rule.as_array().expect("words").contains(instance),
        "const" => rule == instance,
        "anyOf" => rule.as_array().expect("schemas").iter().any(|schema| fits(schema, instance)),
        "minimum" => instance.as_f64().is_none_or(|number| number >= rule.as_f64().expect("a number")),
        "maximum" => instance.as_f64().is_none_or(|number| number <= rule.as_f64().expect("a number")),
        "pattern" => {
            let regex = Regex::new(rule.as_str().expect("a pattern")).expect("valid");
            instance.as_str().is_none_or(|text| regex.is_match(text))
        }
        "items" => instance.as_array().into_iter().flatten().all(|element| fits(rule, element)),
        "required" => texts(rule).iter().all(|key| instance.get(key).is_some()),
        "properties" => rule
            .as_object()
            .expect("schemas")
            .iter()
            .all(|(key, schema)| instance.get(key).is_none_or(|value| fits(schema, value))),
        "additionalProperties" => instance.as_object().into_iter().flatten().all(|(key, value)| {
            let is_known = schema["properties"].get(key).is_some();
            is_known || if rule.is_boolean() { rule == true } else { fits(rule, value) }
        }),
        other => panic!("{other}"),
    })
}

fn instance(text: &str) -> Value {
    fn json_of(value: &DeValue<'_>) -> Value {
        match value {
            DeValue::Table(table) => table_of(table),
            DeValue::Array(elements) => elements.iter().map(|element| json_of(element.get_ref())).collect(),
            DeValue::Float(number) => number.as_str().parse::<f64>().expect("a number").into(),
            // None of ours is a date.
            DeValue::Datetime(_) => Value::Null,
            _ => scalar(&Spanned::new(0..0, value.clone())).expect("a scalar"),
        }
    }
    fn table_of(table: &DeTable<'_>) -> Value {
        let entries = table.iter().map(|(key, value)| (key.get_ref().to_string(), json_of(value.get_ref())));
        entries.collect::<Map<_, _>>().into()
    }
    table_of(DeTable::parse(text).expect("TOML").get_ref())
}

#[test]
fn valid_configurations_match_the_schema() {
    let schema = schema();
    assert!(fits(&schema, &instance(DEFAULT)), "default.toml");
    assert!(fits(&schema, &instance(&template::with_examples())), "with the examples");
    let history = include_str!("../test-data/history.txt");
    for part in history.split("==== ").skip(1) {
        let (heading, text) = part.split_once('\n').expect("a heading");
        assert!(fits(&schema, &instance(text)), "{heading}");
    }
    let docs = include_str!("../../../../../docs/sites.md");
    for example in docs.split("```toml\n").skip(1).filter_map(|part| part.split_once("```")) {
        let (example, _) = example;
        assert!(fits(&schema, &instance(&format!("{example}{}", super::super::tests::sites::BASE))), "{example}");
    }
}

/// Each key, with another kind of value, and each word.
#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let schema = schema();
    let text = template::with_examples();
    let table = DeTable::parse(&text).expect("valid");
    let mut keys = Vec::new();
    leaves(table.get_ref(), "", &mut keys);
    let mut words = 0;
    for (path, value) in keys {
        let mut wrong = text.clone();
        wrong.replace_range(value.span(), "1979-05-27");
        assert!(!fits(&schema, &instance(&wrong)), "{path}");
        // The reader tells which words there are.
        let problems = read(&wrong, Path::new("/etc/evenkeel.toml")).expect_err("wrong");
        let suggested =
            problems.iter().find_map(|p| p.message.strip_prefix(&format!("{path} is 1979-05-27: write one of ")));
        let path = path.replacen("site.route.", "site.", 1);
        let listed = WORDS.iter().find(|(known, _)| *known == path);
        let quoted =
            listed.map(|(_, words)| words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", "));
        if path != "site.location" {
            assert_eq!(suggested.map(str::to_owned), quoted, "{path}");
            words += usize::from(suggested.is_some());
        }
    }
    assert!(words >= WORDS.len(), "{words}");
    assert!(!fits(&schema, &instance(&format!("colour = 1\n{DEFAULT}"))), "an unknown key");
    assert!(!fits(&schema, &instance("[[site]]\npool = \"app\"\n")), "no hosts");
}

/// The reader tells how large a number may be, and the schema knows no less and no more.
#[test]
fn numbers_have_the_ranges_of_the_reader() {
    let schema = schema();
    let text = template::with_examples();
    let table = DeTable::parse(&text).expect("valid");
    let mut keys = Vec::new();
    leaves(table.get_ref(), "", &mut keys);
    let mut known = std::collections::BTreeSet::new();
    for (path, value) in keys {
        let with = |number: &str| {
            let mut text = text.clone();
            text.replace_range(value.span(), number);
            text
        };
        let problems = read(&with(&i64::MAX.to_string()), Path::new("/etc/evenkeel.toml")).err().unwrap_or_default();
        let range = problems.iter().find_map(|problem| {
            let fix = problem.message.strip_prefix(&format!("{path} is {}: write ", i64::MAX))?;
            let range = fix.strip_prefix("a whole number from ").or_else(|| fix.strip_prefix("a size from "));
            let (min, max) = range.or_else(|| fix.strip_prefix("a number from "))?.split_once(" to ")?;
            let max: String = max.chars().take_while(char::is_ascii_digit).collect();
            Some((min.parse::<i64>().ok()?, max.parse::<i64>().ok()?))
        });
        let Some((min, max)) = range else { continue };
        for (number, is_fine) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
            if number >= 0 {
                assert_eq!(fits(&schema, &instance(&with(&number.to_string()))), is_fine, "{path} = {number}");
            }
        }
        known.insert(path.replacen("site.route.", "site.", 1));
    }
    for (path, ..) in RANGES {
        assert!(known.contains(*path), "{path} has a range for the schema alone");
    }
}

#[test]
fn the_schema_describes_keys_and_defaults() {
    let schema = schema();
    let retries = &schema["properties"]["pool"]["items"]["properties"]["retries"];
    assert_eq!(retries["default"], 2);
    assert!(
        retries["description"].as_str().is_some_and(|text| text.starts_with("Further attempts when a backend fails"))
    );
    let site = &schema["properties"]["site"]["items"];
    assert_eq!(site["required"], json!(["hosts"]));
    assert!(site["properties"]["rewrite"].get("default").is_none(), "an example is no default");
    let route = &site["properties"]["route"]["items"];
    assert!(route["properties"].get("path").is_some() && site["properties"].get("path").is_none());
}
