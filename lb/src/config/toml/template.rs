//! The valid keys: those of `default.toml`, including the ones in its comments, which have no default.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::DEFAULT;

/// Tables with user-defined keys; `*` stands for any of them.
const USER_KEYED: &[&str] = &["values", "error_pages"];

/// Keys of a route that a site does not have.
const ROUTES_ONLY: &[&str] =
    &["path", "exact", "prefix", "regex", "over_regex", "methods", "networks", "when", "internal"];

/// A key and those below it.
#[derive(Debug, Clone, Default)]
pub(super) struct Template<'t> {
    pub children: Vec<(&'t str, Template<'t>)>,
    /// Its default, or an example value if it has none.
    pub value: Option<&'t Spanned<DeValue<'t>>>,
    pub is_default: bool,
}

/// `default.toml` with its commented examples uncommented, each byte at the same offset.
pub(super) fn with_examples() -> String {
    let line = |line: &str| match commented_setting(line) {
        Some(setting) => format!("  {setting}\n"),
        None => format!("{line}\n"),
    };
    DEFAULT.lines().map(line).collect()
}

/// The comment above a setting or a heading of `default.toml`, as one line. `None` for a key within an inline table.
pub(super) fn explanation(value: &Spanned<DeValue<'_>>) -> Option<String> {
    let start = value.span().start;
    let line_start = DEFAULT.get(..start)?.rfind('\n').map_or(0, |newline| newline + 1);
    let before = DEFAULT.get(line_start..start)?.trim_start_matches(['#', ' ', '[']);
    let is_first = before.is_empty() || before.strip_suffix(" = ").is_some_and(is_name);
    let above: Vec<_> = DEFAULT[..line_start]
        .lines()
        .rev()
        .map_while(|line| line.strip_prefix('#').filter(|_| commented_setting(line).is_none()))
        .map(str::trim)
        .collect();
    (is_first && !above.is_empty()).then(|| above.into_iter().rev().collect::<Vec<_>>().join(" "))
}

/// The setting or the heading that a line of `default.toml` has as a comment.
pub(super) fn commented_setting(line: &str) -> Option<&str> {
    line.strip_prefix("# ").filter(|text| {
        let name = text.trim_start_matches('[');
        match name.len() < text.len() {
            true => name.find(']').is_some_and(|end| is_name(&name[..end])),
            false => name.find(" = ").is_some_and(|end| is_name(&name[..end])),
        }
    })
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c))
}

impl<'t> Template<'t> {
    pub(super) fn of(root: &'t DeTable<'t>) -> Self {
        let mut template = Self::default();
        template.add(root);
        if let Some((_, site)) = template.children.iter_mut().find(|(key, _)| *key == "site") {
            let of_route = site.child("route").map(|route| route.children.clone()).unwrap_or_default();
            for (key, child) in of_route {
                if !ROUTES_ONLY.contains(&key) && site.child(key).is_none() {
                    site.children.push((key, child));
                }
            }
        }
        template
    }

    pub(super) fn child(&self, key: &str) -> Option<&Self> {
        self.children.iter().find(|(name, _)| *name == key).map(|(_, child)| child)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'t str> {
        self.children.iter().map(|(name, _)| *name)
    }

    fn add(&mut self, table: &'t DeTable<'t>) {
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let name = key.get_ref().as_ref();
            let index = self.children.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                self.children.push((name, Self::default()));
                self.children.len() - 1
            });
            let child = &mut self.children[index].1;
            if child.value.is_none() {
                child.value = Some(value);
                child.is_default = !is_comment(key.span().start);
            }
            match value.get_ref() {
                DeValue::Table(inner) if USER_KEYED.contains(&name) => child.add_free(inner),
                DeValue::Table(inner) => child.add(inner),
                DeValue::Array(elements) => {
                    elements
                        .iter()
                        .filter_map(|element| element.get_ref().as_table())
                        .for_each(|inner| child.add(inner));
                }
                _ => {}
            }
        }
    }
}

impl<'t> Template<'t> {
    /// Merges all tables in it, as if they were under one key.
    fn add_free(&mut self, table: &'t DeTable<'t>) {
        if self.children.is_empty() {
            self.children.push(("*", Self::default()));
        }
        let any = &mut self.children[0].1;
        table.iter().filter_map(|(_, value)| value.get_ref().as_table()).for_each(|inner| any.add(inner));
    }
}

/// Whether the text at an offset of `default.toml` is a comment.
fn is_comment(offset: usize) -> bool {
    let line_start = DEFAULT[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    DEFAULT[line_start..].starts_with('#')
}
