//! Reads the rules of a site or a route, on top of inherited ones.

use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::reader::{Reader, Section, Setting};
use super::tls::Named;
use super::values::{self, DAY, MILLISECOND, Read};
use super::{collect, files};
use crate::config::route::HostPattern;
use crate::config::site::{
    AccessLogRule, CookieRewrite, Cors, CorsHeaders, CorsOrigin, Edit, ErrorPage, FieldChange, HeaderEdits,
    LocationRewrite, LogLine, Page, PageFile, PageStatus, Preset, Replace, Rewrite, Rules, SecretSource, Share, Text,
};
use crate::config::{AccessLogConfig, AccessLogFormat, PoolName, SameSite, StatusRanges};
use crate::message::name::Name;
use crate::value::encode::Escape;
use crate::value::pattern::Pattern;
use crate::value::table::Tables;
use crate::value::{Phase, Scope, Value};

pub(super) const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// The parts of the rest of the configuration that sites refer to.
pub(super) struct References<'a> {
    pub pools: &'a [PoolName],
    pub listeners: &'a [Named],
    pub tables: &'a Tables,
    /// `None`: it has a problem, which is reported there.
    pub access_log: Option<&'a AccessLogConfig>,
}

/// Where rules are written: determines which groups their values can refer to.
#[derive(Clone, Copy)]
pub(super) struct RuleScope<'a> {
    pub around: &'a References<'a>,
    pub host: Option<&'a Pattern>,
    pub route: Option<&'a Pattern>,
    /// Whether `$server_name` has a value: the site's first host is neither `""` nor a regex.
    pub has_server_name: bool,
}

impl<'a> RuleScope<'a> {
    pub(super) fn scope(&self, known: Phase) -> Scope<'a> {
        Scope { tables: self.around.tables, host: self.host, route: self.route, ..Scope::new(known) }
    }
}

/// Fields that concern the connection or the message framing, or that have a setting of their own.
const NO_FIELDS: &[(&str, &str)] = &[
    ("connection", "remove it: connections are kept by Evenkeel itself"),
    ("keep-alive", "remove it: connections are kept by Evenkeel itself"),
    ("proxy-connection", "remove it: connections are kept by Evenkeel itself"),
    ("te", "remove it: connections are kept by Evenkeel itself"),
    ("upgrade", "remove it: WebSockets are passed on by themselves"),
    ("transfer-encoding", "remove it: Evenkeel frames each message itself"),
    ("content-length", "remove it: Evenkeel frames each message itself"),
    ("trailer", "remove it: Evenkeel frames each message itself"),
];

impl<'t> Reader<'t> {
    /// The rules in force for `section`: its own keys, and `outer` for the others.
    pub(super) fn rules(&mut self, section: &Section<'t>, outer: &Rules, rule_scope: &RuleScope<'_>) -> Option<Rules> {
        let mut rules = outer.clone();
        let mut is_sound = true;
        macro_rules! take {
            ($key:literal, $target:expr, $read:expr) => {
                if section.has($key) {
                    rules.origins.note($key, self.origin(section.key_offset($key)));
                    match $read {
                        Some(read) => $target = read,
                        None => is_sound = false,
                    }
                }
            };
        }
        macro_rules! limits {
            ($($key:literal => $target:expr, $read:expr;)*) => {
                $(take!($key, $target, self.required(section, $key, $read).map(Some));)*
            };
        }
        take!("rewrite", rules.rewrite, self.rewrite(section, rule_scope));
        take!(
            "request_headers",
            rules.request_headers,
            self.request_headers(section, &outer.request_headers, rule_scope)
        );
        take!(
            "response_headers",
            rules.response_headers,
            self.response_headers(section, &outer.response_headers, rule_scope)
        );
        const PRESETS: &[(&str, Option<Preset>)] = &[("secure-headers", Some(Preset::SecureHeaders)), ("none", None)];
        take!("preset", rules.preset, self.required(section, "preset", values::choice(PRESETS)));
        take!("error_pages", rules.error_pages, self.error_pages(section, &outer.error_pages, rule_scope));
        take!("intercept_errors", rules.intercept_errors, self.required(section, "intercept_errors", values::flag));
        take!("cors", rules.cors, self.cors(section));
        take!("location", rules.location, self.location(section, rule_scope));
        take!("cookies", rules.cookies, self.cookies(section, outer, rule_scope));
        take!("access_log", rules.access_log, self.access_logs(section, outer, rule_scope).map(Some));
        let timeout = || values::duration(MILLISECOND, DAY);
        limits! {
            "max_body_bytes" => rules.client.max_body_bytes, values::size(0, i64::MAX as u64);
            "body_timeout" => rules.client.body_timeout, timeout();
            "min_rate" => rules.client.min_rate, values::size(0, u32::MAX.into());
            "send_timeout" => rules.client.send_timeout, timeout();
            "connect_timeout" => rules.backend.connect_timeout, timeout();
            "response_timeout" => rules.backend.response_timeout, timeout();
            "read_timeout" => rules.backend.read_timeout, timeout();
            "write_timeout" => rules.backend.write_timeout, timeout();
            "tunnel_timeout" => rules.backend.tunnel_timeout, timeout();
            "retries" => rules.backend.retries, values::whole(0, 16);
            "retry_timeout" => rules.backend.retry_timeout, values::duration(Duration::ZERO, DAY);
            "retry_body_bytes" => rules.backend.retry_body_bytes, values::size(0, 65536);
        }
        is_sound.then_some(rules)
    }

    /// The value of a required key.
    pub(super) fn required_value(
        &mut self,
        section: &Section<'t>,
        key: &str,
        rule_scope: &RuleScope<'_>,
        known: Phase,
    ) -> Option<Value> {
        match section.setting(key) {
            Some(setting) => self.value_in(setting, &rule_scope.scope(known)),
            None => {
                self.missing(section, key);
                None
            }
        }
    }

    pub(super) fn optional_value(
        &mut self,
        section: &Section<'t>,
        key: &str,
        rule_scope: &RuleScope<'_>,
        known: Phase,
    ) -> Option<Option<Value>> {
        match section.setting(key) {
            Some(setting) => self.value_in(setting, &rule_scope.scope(known)).map(Some),
            None => Some(None),
        }
    }

    pub(super) fn value_in(&mut self, setting: Setting<'_, 't>, scope: &Scope<'_>) -> Option<Value> {
        let Setting { section, value, .. } = setting;
        let replaced = self.replaced(setting.offset()).map(|text| text.value.as_str());
        let text = match value.get_ref() {
            DeValue::String(text) => replaced.unwrap_or(text),
            _ => {
                let message = format!("{} is {}: write text in quotes", setting.name(), self.shown(section, value));
                self.problem(setting.offset(), message);
                return None;
            }
        };
        match Value::parse(text, scope) {
            Ok(value) => Some(value),
            Err(message) => {
                let message = format!("{} is {}: {message}", setting.name(), self.shown(section, value));
                self.problem(setting.offset(), message);
                None
            }
        }
    }

    /// The inner `None` overrides the site's setting.
    fn rewrite(&mut self, section: &Section<'t>, rule_scope: &RuleScope<'_>) -> Option<Option<Rewrite>> {
        let inner = self.section(section, "rewrite");
        if !inner.is_written() {
            return None;
        }
        let written = ["prefix", "regex", "to"].map(|key| inner.has(key));
        let rewrite = match written {
            [false, false, false] => return Some(None),
            [true, false, false] => {
                let prefix = self.required(&inner, "prefix", values::byte_prefix)?;
                Rewrite::Prefix { prefix }
            }
            [false, true, true] => {
                let regex = self.regex(&inner, "regex")?;
                let scope = Scope { rewrite: Some(&regex), ..rule_scope.scope(Phase::Route) };
                let to = self.value_in(inner.setting("to")?, &scope)?;
                self.check_path(&inner, "to", &to)?;
                Rewrite::Regex { regex, to }
            }
            [false, false, true] => {
                let to = self.required_value(&inner, "to", rule_scope, Phase::Route)?;
                self.check_path(&inner, "to", &to)?;
                Rewrite::To { to }
            }
            _ => {
                let message = format!(
                    "{}: write {{ prefix = \"/v1\" }}, {{ regex = \"^/old/(.*)$\", to = \"/new/$1\" }} or {{ to = \"/new\" }}",
                    section.name_of("rewrite")
                );
                self.problem(section.offset("rewrite"), message);
                return None;
            }
        };
        Some(Some(rewrite))
    }

    /// Checks that a value for a path begins like one.
    fn check_path(&mut self, section: &Section<'t>, key: &str, value: &Value) -> Option<()> {
        if value.text().starts_with(['/', '$']) {
            return Some(());
        }
        let message = format!("{} is \"{}\": write a path that begins with \"/\"", section.name_of(key), value.text());
        self.problem(section.offset(key), message);
        None
    }

    fn request_headers(
        &mut self,
        section: &Section<'t>,
        outer: &HeaderEdits,
        rule_scope: &RuleScope<'_>,
    ) -> Option<HeaderEdits> {
        let tables = self.one_or_several(section, "request_headers")?;
        let keeps = self.keeps_outer(&tables)?;
        let mut edits = HeaderEdits { host: outer.host.clone().filter(|_| keeps), changes: Vec::new() };
        let mut is_sound = true;
        for table in &tables {
            if table.has("host") {
                match self.required_value(table, "host", rule_scope, Phase::Route) {
                    Some(host) => edits.host = Some(host).filter(|host| !host.text().is_empty()),
                    None => is_sound = false,
                }
            }
            match self.field_changes(table, rule_scope, Phase::Route) {
                Some(changes) => edits.changes.extend(changes),
                None => is_sound = false,
            }
        }
        edits.changes = merged(&outer.changes, edits.changes, keeps);
        is_sound.then_some(edits)
    }

    fn response_headers(
        &mut self,
        section: &Section<'t>,
        outer: &[FieldChange],
        rule_scope: &RuleScope<'_>,
    ) -> Option<Vec<FieldChange>> {
        let tables = self.one_or_several(section, "response_headers")?;
        let keeps = self.keeps_outer(&tables)?;
        let mut changes = Some(Vec::new());
        for table in &tables {
            let inner = self.field_changes(table, rule_scope, Phase::Answer);
            collect(&mut changes, inner);
        }
        Some(merged(outer, changes?.concat(), keeps))
    }

    /// Whether one of the tables has `keep_outer`.
    fn keeps_outer(&mut self, tables: &[Section<'t>]) -> Option<bool> {
        let mut keeps = Some(Vec::new());
        for table in tables {
            let flag = self.optional(table, "keep_outer", values::flag);
            collect(&mut keeps, flag);
        }
        keeps.map(|keeps| keeps.contains(&Some(true)))
    }

    fn field_changes(
        &mut self,
        table: &Section<'t>,
        rule_scope: &RuleScope<'_>,
        known: Phase,
    ) -> Option<Vec<FieldChange>> {
        const EDITS: &[(&str, Edit)] =
            &[("set", Edit::Set), ("add", Edit::Add), ("append", Edit::Append), ("default", Edit::SetIfMissing)];
        let on = self.optional(table, "status", values::status_ranges);
        let mut changes = Some(Vec::new());
        if table.has("remove") {
            for name in self.elements(table, "remove").unwrap_or_default() {
                let name = self.read_at(table, "remove", name, |value| field_name(value.as_str().unwrap_or_default()));
                let on = on.clone().flatten();
                let change = name.map(|name| {
                    let (known, value) = (Name::of(name.as_bytes()), Text::of(Value::constant("")));
                    FieldChange { name, known, edit: Edit::Remove, value, on }
                });
                collect(&mut changes, change);
            }
        }
        for (key, edit) in EDITS {
            for entry in self.entries(table, key).unwrap_or_else(|| {
                changes = None;
                Vec::new()
            }) {
                let shown = format!("{key}.{}", entry.name);
                let name = match field_name(entry.name) {
                    Ok(name) => Some(name),
                    Err(fix) => {
                        let message = format!("{} has the field \"{}\": write {fix}", table.name_of(key), entry.name);
                        self.problem(entry.key_offset, message);
                        None
                    }
                };
                let texts: Vec<_> = match entry.value.get_ref() {
                    DeValue::Array(elements) if *edit == Edit::Add => elements.iter().collect(),
                    _ => vec![entry.value],
                };
                for text in texts {
                    let value = self.text(table.within(&shown, text), &rule_scope.scope(known));
                    let change = name.clone().zip(value).map(|(name, value)| FieldChange {
                        known: Name::of(name.as_bytes()),
                        name,
                        edit: *edit,
                        value,
                        on: on.clone().flatten(),
                    });
                    collect(&mut changes, change);
                }
            }
        }
        on?;
        changes
    }

    /// The value of a field: text, or `{ file = "…" }`.
    fn text(&mut self, setting: Setting<'_, 't>, scope: &Scope<'_>) -> Option<Text> {
        let Setting { section, key, value } = setting;
        let (value_read, shown) = match value.get_ref() {
            DeValue::Table(table) => {
                let (Some(file), 1) = (table.get("file"), table.len()) else {
                    let message = format!("{} is a table: write text, or {{ file = \"secret.txt\" }}", setting.name());
                    self.problem(setting.offset(), message);
                    return None;
                };
                let base = self.base(section);
                let (path, text) = self.read_at(section, key, file, |value| files::text(base, value))?;
                (Value::constant(&text), Some(SecretSource::File(path)))
            }
            _ => {
                let read = self.value_in(setting, scope)?;
                let written = self.replaced(setting.offset()).map(|text| text.written.clone());
                (read, written.map(SecretSource::Written))
            }
        };
        if let Some(constant) = value_read.as_constant()
            && !is_field_value(constant)
        {
            let message = format!(
                "{} holds a character that no field may have: write it without line breaks and control characters, and without spaces at its ends",
                setting.name()
            );
            self.problem(setting.offset(), message);
            return None;
        }
        Some(Text { value: value_read, shown })
    }

    fn error_pages(
        &mut self,
        section: &Section<'t>,
        outer: &[ErrorPage],
        rule_scope: &RuleScope<'_>,
    ) -> Option<Vec<ErrorPage>> {
        let entries = self.entries(section, "error_pages")?;
        let mut pages = Some(Vec::new());
        let mut keeps = false;
        for entry in entries {
            let key = format!("error_pages.{}", entry.name);
            if entry.name == "keep_outer" {
                match self.read_at(section, &key, entry.value, values::flag) {
                    Some(flag) => keeps = flag,
                    None => pages = None,
                }
                continue;
            }
            let on = StatusRanges::parse(entry.name).filter(|on| on.codes().iter().all(|code| *code >= 300));
            if on.as_ref().is_some_and(|on| on.codes() == [304]) {
                let message = format!(
                    "{} is for 304, which is not an error: the client's copy is still valid, and no page replaces it; remove it",
                    section.name_of("error_pages")
                );
                self.problem(entry.key_offset, message);
            }
            if on.is_none() {
                let message = format!(
                    "{} is for \"{}\": write codes from 300 to 599, such as \"404\" or \"500-504\"",
                    section.name_of("error_pages"),
                    entry.name
                );
                self.problem(entry.key_offset, message);
            }
            let page = self.error_page(section.within(&key, entry.value), rule_scope);
            collect(&mut pages, on.zip(page).map(|(on, (status, page))| ErrorPage { on, status, page }));
        }
        let mut pages: Vec<ErrorPage> = pages?;
        if keeps {
            let kept: Vec<_> =
                outer.iter().filter(|page| !pages.iter().any(|inner| inner.on == page.on)).cloned().collect();
            pages.extend(kept);
        }
        Some(pages)
    }

    fn error_page(&mut self, setting: Setting<'_, 't>, rule_scope: &RuleScope<'_>) -> Option<(PageStatus, Page)> {
        const FORMS: &str =
            "\"/path\", or a table with one of path, file, text and redirect, such as { file = \"errors/404.html\" }";
        let Setting { section, key, value } = setting;
        let scope = rule_scope.scope(Phase::Answer);
        let DeValue::Table(_) = value.get_ref() else {
            let is_url = value.get_ref().as_str().is_some_and(|text| text.contains("://"));
            return match is_url {
                true => {
                    let to = self.value_in(setting, &scope)?;
                    self.check_redirect(setting, &to, rule_scope)?;
                    Some((PageStatus::Is(302), Page::Redirect(to)))
                }
                false => self.jump(setting, &scope).map(|to| (PageStatus::Keep, Page::Jump(to))),
            };
        };
        let inner = self.free_page(section, key, value);
        let content_type = self.optional_value(&inner, "content_type", rule_scope, Phase::Answer);
        let status = self.optional(&inner, "status", |value| match value.as_str() {
            Some("page") => Ok(PageStatus::OfPage),
            _ => values::whole(200, 599)(value)
                .map(PageStatus::Is)
                .map_err(|_| "a code from 200 to 599, or \"page\" for that of the page".to_owned()),
        });
        let kinds: Vec<_> = ["path", "file", "text", "redirect"].into_iter().filter(|kind| inner.has(kind)).collect();
        let [kind] = kinds.as_slice() else {
            self.problem(section.at(value), format!("{} is a table: write {FORMS}", section.name_of(key)));
            return None;
        };
        let (content_type, status) = (content_type?, status?);
        if let Some(PageStatus::Is(code @ (204 | 205 | 304))) = status
            && *kind != "redirect"
        {
            let message = format!(
                "{} is {code}, which has no content, so that no page could be seen: write another code, or remove it",
                inner.name_of("status")
            );
            self.problem(inner.offset("status"), message);
        }
        if content_type.is_some() && matches!(*kind, "path" | "redirect") {
            let message = format!("{} has no effect beside {kind}: remove it", inner.name_of("content_type"));
            self.problem(inner.key_offset("content_type"), message);
        }
        if status == Some(PageStatus::OfPage) && *kind != "path" {
            let message = format!(
                "{} is \"page\", but a {kind} has no status: write a code, or remove it",
                inner.name_of("status")
            );
            self.problem(inner.offset("status"), message);
        }
        let written = inner.written(kind)?;
        let page = match *kind {
            "path" => Page::Jump(self.jump(inner.within(kind, written), &scope)?),
            "text" => Page::Text {
                text: self.value_in(inner.within(kind, written), &scope)?,
                content_type: content_type.unwrap_or_else(|| Value::constant(PLAIN_TEXT)),
            },
            "file" => {
                let base = self.base(&inner);
                let (path, bytes) = self.read_at(&inner, kind, written, |value| files::page(base, value))?;
                let by_name = Value::constant(files::content_type(&path));
                Page::File {
                    file: PageFile { path, bytes: bytes.into() },
                    content_type: content_type.unwrap_or(by_name),
                }
            }
            _ => {
                let to = self.value_in(inner.within(kind, written), &scope)?;
                self.check_redirect(inner.within(kind, written), &to, rule_scope)?;
                let status = match status {
                    None => 302,
                    Some(PageStatus::Is(status)) if values::is_redirect(status) => status,
                    _ => {
                        let message = format!(
                            "{} is not a redirect status: write 301, 302, 303, 307 or 308",
                            inner.name_of("status")
                        );
                        self.problem(inner.offset("status"), message);
                        return None;
                    }
                };
                return Some((PageStatus::Is(status), Page::Redirect(to)));
            }
        };
        Some((status.unwrap_or(PageStatus::Keep), page))
    }

    /// The inner `None` overrides the site's setting.
    fn cors(&mut self, section: &Section<'t>) -> Option<Option<Cors>> {
        let inner = self.section(section, "cors");
        if !inner.is_written() {
            return None;
        }
        if inner.is_empty() {
            return Some(None);
        }
        if !inner.has("origins") {
            self.missing(&inner, "origins");
            return None;
        }
        let list = |reader: &mut Self, key: &str, read: fn(&DeValue<'t>) -> Read<String>| match inner.has(key) {
            true => reader.each(&inner, key, read).map(Some),
            false => Some(None),
        };
        let origins = self.each(&inner, "origins", cors_origin);
        let methods = list(self, "methods", values::method);
        let headers = list(self, "headers", |value| match value.as_str() {
            Some("*") => Ok("*".to_owned()),
            text => values::field_token(text.unwrap_or_default()),
        });
        let expose = list(self, "expose", |value| values::field_token(value.as_str().unwrap_or_default()));
        let credentials = self.optional(&inner, "credentials", values::flag);
        let max_age = self.optional(&inner, "max_age", values::duration(Duration::ZERO, DAY));
        let (origins, credentials) = (origins?, credentials?.unwrap_or(false));
        if origins.is_empty() {
            self.problem(
                inner.offset("origins"),
                format!(
                    "{} is empty: write origins such as \"https://shop.example\", or \"*\" for all",
                    inner.name_of("origins")
                ),
            );
            return None;
        }
        if credentials && origins.contains(&CorsOrigin::Any) {
            let message = format!(
                "{} is true for the origin \"*\", which browsers refuse, since anybody's scripts could act for your users: write the origins, or credentials = false",
                inner.name_of("credentials")
            );
            self.problem(inner.offset("credentials"), message);
            return None;
        }
        let headers = headers?.unwrap_or_default();
        let methods = methods?.unwrap_or_else(|| ["GET", "HEAD", "POST"].map(str::to_owned).to_vec());
        let cors = Cors {
            origins,
            methods,
            headers: if headers.iter().any(|name| name == "*") {
                CorsHeaders::Asked
            } else {
                CorsHeaders::These(headers)
            },
            expose: expose?.unwrap_or_default(),
            credentials,
            max_age: max_age?.filter(|age| !age.is_zero()),
        };
        Some(Some(cors))
    }

    fn location(&mut self, section: &Section<'t>, rule_scope: &RuleScope<'_>) -> Option<LocationRewrite> {
        if let Some(text) = section.written("location").and_then(|value| value.get_ref().as_str())
            && text.starts_with(['/', '~', '=', '^', '@'])
        {
            let message = format!(
                "{} is \"{text}\", but it is what becomes of Location in responses: for nginx's location write a [[site.route]] with path = \"/api\", or with exact, prefix or regex",
                section.name_of("location")
            );
            self.problem(section.offset("location"), message);
            return None;
        }
        if section.is_text("location") {
            const CHOICES: &[(&str, bool)] = &[("auto", true), ("off", false)];
            let is_auto = self.required(section, "location", values::choice(CHOICES))?;
            return Some(if is_auto { LocationRewrite::Auto } else { LocationRewrite::Off });
        }
        let mut pairs = Some(Vec::new());
        let sections = match section.written("location").is_some_and(is_block_of_nginx) {
            true => {
                let message = format!(
                    "{} is what becomes of Location in responses: for nginx's location write [[site.route]] in its place",
                    section.name_of("location")
                );
                self.problem(section.key_offset("location"), message);
                return None;
            }
            false => self.one_or_several(section, "location")?,
        };
        for table in sections {
            let from = self.required(&table, "from", values::text);
            let to = self.required_value(&table, "to", rule_scope, Phase::Answer);
            if from.as_deref() == Some("") {
                self.problem(
                    table.offset("from"),
                    format!("{} is empty: write how the Location to change begins", table.name_of("from")),
                );
            }
            collect(&mut pairs, from.zip(to).map(|(from, to)| Replace { from, to }));
        }
        pairs.map(LocationRewrite::Pairs)
    }

    fn cookies(&mut self, section: &Section<'t>, outer: &Rules, rule_scope: &RuleScope<'_>) -> Option<CookieRewrite> {
        const SAME_SITE: &[(&str, SameSite)] =
            &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)];
        let inner = self.section(section, "cookies");
        let keeps = self.optional(&inner, "keep_outer", values::flag)?.unwrap_or(false);
        let outer = if keeps { outer.cookies.clone() } else { Default::default() };
        let domain = self.replacements(&inner, "domain", rule_scope);
        let path = self.replacements(&inner, "path", rule_scope);
        let secure = self.optional(&inner, "secure", values::flag);
        let http_only = self.optional(&inner, "http_only", values::flag);
        let same_site = self.optional(&inner, "same_site", values::choice(SAME_SITE));
        let (secure, same_site) = (secure?.or(outer.secure), same_site?.or(outer.same_site));
        if (secure, same_site) == (Some(false), Some(SameSite::None)) {
            let message = format!(
                "{} is false, but browsers refuse a cookie with same_site \"none\" that is not secure: write secure = true",
                inner.name_of("secure")
            );
            self.problem(inner.offset("secure"), message);
        }
        Some(CookieRewrite {
            domain: domain?.unwrap_or(outer.domain),
            path: path?.unwrap_or(outer.path),
            secure,
            http_only: http_only?.or(outer.http_only),
            same_site,
        })
    }

    /// A table from the existing to the new text.
    fn replacements(
        &mut self,
        section: &Section<'t>,
        key: &str,
        rule_scope: &RuleScope<'_>,
    ) -> Option<Option<Vec<Replace>>> {
        if !section.has(key) {
            return Some(None);
        }
        let mut pairs = Some(Vec::new());
        for entry in self.entries(section, key)? {
            let name = format!("{key}.{}", entry.name);
            let to = self.value_in(section.within(&name, entry.value), &rule_scope.scope(Phase::Answer));
            collect(&mut pairs, to.map(|to| Replace { from: entry.name.to_owned(), to }));
        }
        pairs.map(Some)
    }

    fn access_logs(
        &mut self,
        section: &Section<'t>,
        outer: &Rules,
        rule_scope: &RuleScope<'_>,
    ) -> Option<Vec<AccessLogRule>> {
        let base = self.base(section);
        let common = rule_scope.around.access_log.and_then(|log| {
            let format = match log.format {
                AccessLogFormat::Json => LogLine::Json,
                AccessLogFormat::Combined => LogLine::Combined,
            };
            let file = log.file.clone()?;
            Some(AccessLogRule::all(file, format))
        });
        if section.is_text("access_log") {
            let file = self.required(section, "access_log", |value| match value.as_str() {
                Some("off") => Ok(None),
                _ => values::log_file(base, value).and_then(|file| {
                    file.map(Some).ok_or_else(|| "\"off\", \"stdout\", or the path of a file".to_owned())
                }),
            })?;
            let format = common.map_or(LogLine::Json, |common| common.format);
            return Some(file.map(|file| AccessLogRule::all(file, format)).into_iter().collect());
        }
        let tables = self.one_or_several(section, "access_log")?;
        let keeps = self.keeps_outer(&tables)?;
        let mut rules = match (keeps, &outer.access_log) {
            (false, _) => Some(Vec::new()),
            (true, Some(outer)) => Some(outer.clone()),
            (true, None) => Some(common.clone().into_iter().collect()),
        };
        for table in &tables {
            let rule = self.access_log_rule(table, common.as_ref(), rule_scope);
            collect(&mut rules, rule);
        }
        rules
    }

    fn access_log_rule(
        &mut self,
        table: &Section<'t>,
        common: Option<&AccessLogRule>,
        rule_scope: &RuleScope<'_>,
    ) -> Option<AccessLogRule> {
        let base = self.base(table);
        let file = match table.has("file") {
            true => self.required(table, "file", |value| {
                values::log_file(base, value)?.ok_or_else(|| "\"stdout\", or the path of a file".to_owned())
            }),
            false => {
                if common.is_none() && rule_scope.around.access_log.is_some() {
                    let message = format!(
                        "{} is missing: write file = \"log/site.json\", since [access_log] has none",
                        table.name_of("file")
                    );
                    self.absent(Some(table.own_offset()), message);
                }
                common.map(|common| common.file.clone())
            }
        };
        let format = match table.written("format").map(|value| (value, value.get_ref().as_str())) {
            None => Some(common.map_or(LogLine::Json, |common| common.format.clone())),
            Some((_, Some("json"))) => Some(LogLine::Json),
            Some((_, Some("combined"))) => Some(LogLine::Combined),
            Some((value, text)) => match text {
                Some(text) if !text.contains('$') => {
                    let message = format!(
                        "{} is \"{text}\": write \"json\", \"combined\", or a line with variables, such as \"$remote_addr $status\"",
                        table.name_of("format")
                    );
                    self.problem(table.at(value), message);
                    None
                }
                _ => self.value_in(table.within("format", value), &rule_scope.scope(Phase::End)).map(LogLine::Own),
            },
        };
        if let Some(LogLine::Own(line)) = &format
            && line.text().contains(['\n', '\r'])
        {
            self.problem(
                table.offset("format"),
                format!("{} has a line break: write one line", table.name_of("format")),
            );
        }
        const ESCAPES: &[(&str, Escape)] =
            &[("default", Escape::Default), ("json", Escape::Json), ("none", Escape::None)];
        let escape = self.optional(table, "escape", values::choice(ESCAPES));
        if let (true, Some(LogLine::Json | LogLine::Combined)) = (table.has("escape"), &format) {
            let message = format!(
                "{} has no effect without a format of your own, such as \"$remote_addr $status\": remove it",
                table.name_of("escape")
            );
            self.problem(table.key_offset("escape"), message);
        }
        let when = self.section(table, "when");
        let status = self.optional(&when, "status", values::status_ranges);
        let condition = self.condition_within(&when, rule_scope, Phase::End);
        let share = self.optional(table, "share", values::share);
        let or_share = self.optional(table, "or_share", values::share);
        let (status, when) = (status?, condition?);
        if table.has("or_share") && status.is_none() && when.is_none() {
            let message = format!(
                "{} has no effect without \"when\", since there are no others: write when, or share",
                table.name_of("or_share")
            );
            self.problem(table.key_offset("or_share"), message);
        }
        Some(AccessLogRule {
            file: file?,
            format: format?,
            escape: escape?,
            status,
            when,
            share: share?.unwrap_or(Share::ALL),
            or_share: or_share?.unwrap_or(Share::NONE),
        })
    }
}

/// Whether `location` was used like nginx's block, where a route is needed.
fn is_block_of_nginx(value: &Spanned<DeValue<'_>>) -> bool {
    const OF_ROUTES: &[&str] =
        &["path", "exact", "prefix", "regex", "pool", "proxy_pass", "respond", "redirect", "return"];
    let is_route = |value: &Spanned<DeValue<'_>>| {
        value.get_ref().as_table().is_some_and(|table| OF_ROUTES.iter().any(|key| table.contains_key(*key)))
    };
    is_route(value) || value.get_ref().as_array().is_some_and(|elements| elements.iter().any(is_route))
}

/// Outer changes stay if `keep_outer` is set, except those of fields that inner ones change.
fn merged(outer: &[FieldChange], inner: Vec<FieldChange>, keeps: bool) -> Vec<FieldChange> {
    let is_overruled = |change: &FieldChange| {
        inner
            .iter()
            .any(|other| other.name.eq_ignore_ascii_case(&change.name) && (other.on.is_none() || other.on == change.on))
    };
    let mut changes: Vec<_> = outer.iter().filter(|change| keeps && !is_overruled(change)).cloned().collect();
    changes.extend(inner);
    changes
}

/// The name of a field that may be changed.
fn field_name(name: &str) -> Read<String> {
    let name = values::field_token(name)?;
    if name.eq_ignore_ascii_case("host") {
        return Err("request_headers = { host = \"…\" } for the Host that backends are sent".to_owned());
    }
    match NO_FIELDS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) {
        Some((_, fix)) => Err(format!("another one, or {fix}")),
        None => Ok(name),
    }
}

/// RFC 9110 §5.5.
fn is_field_value(value: &[u8]) -> bool {
    let is_allowed = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    value.iter().all(is_allowed) && value.trim_ascii().len() == value.len()
}

fn cors_origin(value: &DeValue<'_>) -> Read<CorsOrigin> {
    const FIX: &str = "an origin without a path, such as \"https://shop.example\" or \"https://*.shop.example\", \"~REGEX\", or \"*\" for all";
    let text = value.as_str().unwrap_or_default();
    if text == "*" {
        return Ok(CorsOrigin::Any);
    }
    if let Some(regex) = text.strip_prefix('~') {
        values::regex_in(regex)?;
        return values::regex_in(&CorsOrigin::whole(regex)).map(CorsOrigin::Regex);
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, host) = lower.split_once("://").ok_or(FIX)?;
    let is_scheme = !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_port = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let pattern = HostPattern::parse(name);
    match pattern {
        _ if !is_scheme || !is_port => Err(FIX.to_owned()),
        Some(HostPattern::Below(domain)) => {
            let domain = port.map_or(domain.clone(), |port| format!("{domain}:{port}"));
            Ok(CorsOrigin::Below { scheme: scheme.to_owned(), domain })
        }
        Some(HostPattern::Exact(name)) => {
            // Browsers omit the default port.
            let port = port.filter(|port| !matches!((scheme, *port), ("https", "443") | ("http", "80")));
            Ok(CorsOrigin::Exact(match port {
                Some(port) => format!("{scheme}://{name}:{port}"),
                None => format!("{scheme}://{name}"),
            }))
        }
        _ => Err(FIX.to_owned()),
    }
}
