//! The JSON of sites where it is not that of their types: the form that `evenkeel.toml` has for it.

use std::path::Path;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::{
    ANCHORS, Action, CorsHeaders, CorsOrigin, Edit, ErrorPage, FieldChange, HeaderEdits, JumpTo, ListenerName,
    LocationRewrite, LogLine, Matcher, Page, PageStatus, RouteConfig, RouteName, Rules, SecretSource, Share,
    SiteConfig, Text,
};
use crate::config::StatusRanges;
use crate::config::route::HostPattern;
use crate::value::Value;
use crate::value::condition::Condition;

impl Serialize for SiteConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            name: &'a str,
            hosts: &'a [HostPattern],
            listeners: &'a [ListenerName],
            #[serde(skip_serializing_if = "Option::is_none")]
            certificate: Option<&'a Path>,
            #[serde(flatten)]
            rules: &'a Rules,
            routes: &'a [RouteConfig],
        }
        let Self { name, hosts, listeners, certificate, routes, fallback: rules, defined_at: _ } = self;
        Written { name, hosts, listeners, certificate: certificate.as_deref(), rules, routes }.serialize(serializer)
    }
}

impl Serialize for RouteConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            name: &'a RouteName,
            #[serde(flatten)]
            matcher: &'a Matcher,
            #[serde(flatten)]
            condition: Option<&'a Condition>,
            over_regex: bool,
            internal: bool,
            #[serde(flatten)]
            action: &'a Action,
            #[serde(flatten)]
            rules: &'a Rules,
        }
        let Self { name, matcher, condition, over_regex, internal, action, rules, defined_at: _ } = self;
        let (condition, over_regex, internal) = (condition.as_ref(), *over_regex, *internal);
        Written { name, matcher, condition, over_regex, internal, action, rules }.serialize(serializer)
    }
}

impl Serialize for Matcher {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match self {
            Self::Path(path) => map.serialize_entry("path", path)?,
            Self::Exact(path) => map.serialize_entry("exact", path)?,
            Self::Prefix(prefix) => map.serialize_entry("prefix", prefix)?,
            Self::Regex(regex) => map.serialize_entry("regex", regex)?,
            Self::Named => {}
        }
        map.end()
    }
}

impl Serialize for JumpTo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Route(name) => name.serialize(serializer),
            Self::Path(path) => path.serialize(serializer),
        }
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.shown {
            Some(SecretSource::File(file)) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("file", file)?;
                map.end()
            }
            Some(SecretSource::Written(text)) => serializer.serialize_str(text),
            None => self.value.serialize(serializer),
        }
    }
}

impl Serialize for HeaderEdits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut tables = tables_of(&self.changes);
        if tables.is_empty() {
            tables.push(HeaderTable::default());
        }
        tables[0].host = self.host.as_ref();
        tables.serialize(serializer)
    }
}

impl Serialize for ErrorPage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let content_type = match &self.page {
            Page::Jump(to) => {
                map.serialize_entry("path", to)?;
                None
            }
            Page::Text { text, content_type } => {
                map.serialize_entry("text", text)?;
                Some(content_type)
            }
            Page::File { file, content_type } => {
                map.serialize_entry("file", &file.path)?;
                Some(content_type)
            }
            Page::Redirect(to) => {
                map.serialize_entry("redirect", to)?;
                None
            }
        };
        match self.status {
            PageStatus::Keep => {}
            PageStatus::Is(status) => map.serialize_entry("status", &status)?,
            PageStatus::OfPage => map.serialize_entry("status", "page")?,
        }
        if let Some(content_type) = content_type {
            map.serialize_entry("content_type", content_type)?;
        }
        map.end()
    }
}

impl Serialize for CorsOrigin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Any => serializer.serialize_str("*"),
            Self::Exact(origin) => serializer.serialize_str(origin),
            Self::Below { scheme, domain } => serializer.collect_str(&format_args!("{scheme}://*.{domain}")),
            Self::Regex(regex) => {
                let text = regex.text();
                let written =
                    text.strip_prefix(ANCHORS.0).and_then(|text| text.strip_suffix(ANCHORS.1)).unwrap_or(text);
                serializer.collect_str(&format_args!("~{written}"))
            }
        }
    }
}

impl Serialize for CorsHeaders {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Asked => ["*"].serialize(serializer),
            Self::These(names) => names.serialize(serializer),
        }
    }
}

impl Serialize for LocationRewrite {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::Pairs(pairs) => pairs.serialize(serializer),
        }
    }
}

impl Serialize for LogLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Json => serializer.serialize_str("json"),
            Self::Combined => serializer.serialize_str("combined"),
            Self::Own(line) => line.serialize(serializer),
        }
    }
}

impl Serialize for Share {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1e6)
    }
}

/// Changes of fields, as one table of the file.
#[derive(Default, Serialize)]
struct HeaderTable<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a StatusRanges>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    remove: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "fields")]
    set: Vec<(&'a str, Vec<&'a Text>)>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "fields")]
    add: Vec<(&'a str, Vec<&'a Text>)>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "fields")]
    append: Vec<(&'a str, Vec<&'a Text>)>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "fields")]
    default: Vec<(&'a str, Vec<&'a Text>)>,
}

/// The fewest tables that make the same changes in the same order.
fn tables_of(changes: &[FieldChange]) -> Vec<HeaderTable<'_>> {
    let mut tables: Vec<HeaderTable<'_>> = Vec::new();
    let mut last: Option<&FieldChange> = None;
    for change in changes {
        if last.is_none_or(|last| last.on != change.on || last.edit > change.edit) {
            tables.push(HeaderTable { status: change.on.as_ref(), ..HeaderTable::default() });
        }
        last = Some(change);
        let Some(table) = tables.last_mut() else { continue };
        let fields = match change.edit {
            Edit::Remove => {
                table.remove.push(&change.name);
                continue;
            }
            Edit::Set => &mut table.set,
            Edit::Add => &mut table.add,
            Edit::Append => &mut table.append,
            Edit::SetIfMissing => &mut table.default,
        };
        match fields.iter_mut().find(|(name, _)| *name == change.name) {
            Some((_, values)) => values.push(&change.value),
            None => fields.push((&change.name, vec![&change.value])),
        }
    }
    tables
}

fn fields<S: Serializer>(fields: &[(&str, Vec<&Text>)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(fields.len()))?;
    for (name, values) in fields {
        match values.as_slice() {
            [value] => map.serialize_entry(name, value)?,
            values => map.serialize_entry(name, values)?,
        }
    }
    map.end()
}

pub(super) fn field_changes<S: Serializer>(changes: &[FieldChange], serializer: S) -> Result<S::Ok, S::Error> {
    tables_of(changes).serialize(serializer)
}

/// By status, in order of precedence.
pub(super) fn error_pages<S: Serializer>(pages: &[ErrorPage], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(pages.len()))?;
    for page in pages {
        map.serialize_entry(&page.on.to_string(), page)?;
    }
    map.end()
}
