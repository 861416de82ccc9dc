//! `${env:NAME}` in texts of a configuration.

use std::collections::HashMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The result of replacing environment variables.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// Each text in which something was replaced, by offset.
    pub texts: HashMap<usize, Text>,
    /// Problems, with their offsets.
    pub problems: Vec<(usize, String)>,
}

#[derive(Debug)]
pub(super) struct Text {
    /// As written: the replaced text may contain a secret.
    pub written: String,
    /// With `$` doubled in the inserted text, as values need it.
    pub value: String,
}

impl Replaced {
    /// Replaces variables in all texts of a file whose first byte is at `start`. Keys are not changed.
    pub(super) fn replace(
        &mut self,
        table: &mut DeTable<'_>,
        start: usize,
        variable: &impl Fn(&str) -> Option<String>,
    ) {
        for (_, value) in table.iter_mut() {
            self.value(value, start, variable);
        }
    }

    fn value(&mut self, value: &mut Spanned<DeValue<'_>>, start: usize, variable: &impl Fn(&str) -> Option<String>) {
        let offset = start + value.span().start;
        match value.get_mut() {
            DeValue::String(text) if text.contains(BEGIN) => {
                let value = replaced(text, |name| Some(variable(name)?.replace('$', "$$")));
                match (replaced(text, variable), value) {
                    (Ok(now), Ok(value)) => {
                        self.texts.insert(offset, Text { written: text.to_string(), value });
                        *text = now.into();
                    }
                    (Err(message), _) | (_, Err(message)) => self.problems.push((offset, message)),
                }
            }
            DeValue::Array(elements) => elements.iter_mut().for_each(|element| self.value(element, start, variable)),
            DeValue::Table(table) => self.replace(table, start, variable),
            _ => {}
        }
    }
}

const BEGIN: &str = "${env:";

fn replaced(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let (mut now, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(BEGIN) {
        let (before, behind) = rest.split_at(at);
        now.push_str(before);
        // `$$` is a literal dollar sign.
        if !(before.len() - before.trim_end_matches('$').len()).is_multiple_of(2) {
            now.push_str(BEGIN);
            rest = &behind[BEGIN.len()..];
            continue;
        }
        let behind = &behind[BEGIN.len()..];
        let Some((name, after)) = behind.split_once('}') else {
            return Err("\"${env:\" has no \"}\": write ${env:NAME}".to_owned());
        };
        match variable(name) {
            Some(value) => now.push_str(&value),
            None => {
                return Err(format!(
                    "the environment has no {name}, or it is not UTF-8: set it where Evenkeel is started, or write the value itself"
                ));
            }
        }
        rest = after;
    }
    now.push_str(rest);
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_replaced_once_and_dollar_signs_stay() {
        let variable = |name: &str| (name == "A").then(|| "${env:A}x".to_owned());
        for (text, expected) in [
            ("${env:A}", Ok("${env:A}x")),
            ("<${env:A}|${env:A}>", Ok("<${env:A}x|${env:A}x>")),
            ("$${env:A}", Ok("$${env:A}")),
            ("$$${env:A}", Ok("$$${env:A}x")),
            ("$host ${host}", Ok("$host ${host}")),
            ("${env:A", Err("\"${env:\" has no")),
            ("${env:B}", Err("the environment has no B")),
        ] {
            match (replaced(text, variable), expected) {
                (Ok(now), Ok(expected)) => assert_eq!(now, expected),
                (Err(message), Err(expected)) => assert!(message.starts_with(expected), "{message}"),
                (now, _) => panic!("{text}: {now:?}"),
            }
        }
    }
}
