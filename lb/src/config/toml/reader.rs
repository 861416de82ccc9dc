//! Walks a parsed file and records problems instead of stopping at the first one.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use foldhash::HashMap;
use rustls::pki_types::CertificateDer;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::environment::{Replaced, Text};
use super::sources::{Parsed, Sources};
use super::template::Template;
use super::values::{self, Read};
use super::words::{elsewhere, in_section};
use super::{DEFAULT, Position, Problem, UNFINISHED, foreign};
use crate::config::site::SourceLocation;
use crate::config::transport;
use crate::value::pattern::Pattern;

const EXAMPLE_OF_VALUES: &str = "{ from = \"$cookie_tier\", cases = { gold = \"fast\" }, default = \"slow\" }";

/// Messages show at most this much of a value.
const MAX_SHOWN_CHARS: usize = 48;

/// Messages name at most this many keys of a file.
const MAX_SHOWN_KEYS: usize = 4;

pub(super) struct Reader<'t> {
    /// The system's CAs, once they have been read.
    system_roots: Option<Result<Arc<[CertificateDer<'static>]>, String>>,
    sources: &'t Sources,
    template: &'t Template<'t>,
    replaced: &'t Replaced,
    /// For each file.
    broken: Vec<SyntaxErrors>,
    problems: Vec<(Option<usize>, String)>,
    /// Expressions that were compiled already: sites often share them, and each takes long to compile.
    patterns: HashMap<String, Pattern>,
}

/// Which part of a file may be misread because of syntax errors.
#[derive(Clone, Default)]
struct SyntaxErrors {
    /// From this line on, values may be misread and absent keys may just be unread. Problems there are not reported
    /// before the syntax is fixed.
    from: Option<usize>,
    /// Lines with a syntax error that affects no other line.
    lines: Vec<usize>,
}

/// A table of a file, with the part of `default.toml` that lists its keys and their defaults.
pub(super) struct Section<'t> {
    /// The name in messages, such as `pool.probe`; empty for the whole file.
    path: String,
    offset: usize,
    /// The offset of the first byte of its file.
    start: usize,
    /// `None`: not written, so all defaults.
    table: Option<&'t DeTable<'t>>,
    template: Option<&'t Template<'t>>,
}

/// A value under a user-defined key, such as a field name.
pub(super) struct Entry<'t> {
    pub name: &'t str,
    pub key_offset: usize,
    pub value: &'t Spanned<DeValue<'t>>,
}

/// A value under a key of a section, or nested in one.
#[derive(Clone, Copy)]
pub(super) struct Setting<'s, 't> {
    pub section: &'s Section<'t>,
    /// The name in messages, relative to the section.
    pub key: &'s str,
    pub value: &'t Spanned<DeValue<'t>>,
}

impl Setting<'_, '_> {
    /// The name in messages.
    pub(super) fn name(&self) -> String {
        self.section.name_of(self.key)
    }

    /// The offset of the value.
    pub(super) fn offset(&self) -> usize {
        self.section.at(self.value)
    }
}

impl<'t> Section<'t> {
    /// The value under a key, if it is written.
    pub(super) fn setting<'s>(&'s self, key: &'s str) -> Option<Setting<'s, 't>> {
        self.written(key).map(|value| self.within(key, value))
    }

    /// A value nested in this one.
    pub(super) fn within<'s>(&'s self, key: &'s str, value: &'t Spanned<DeValue<'t>>) -> Setting<'s, 't> {
        Setting { section: self, key, value }
    }

    pub(super) fn is_written(&self) -> bool {
        self.table.is_some()
    }

    /// Whether it is written and empty.
    pub(super) fn is_empty(&self) -> bool {
        self.table.is_some_and(|table| table.is_empty())
    }

    /// The section under `key` with all defaults.
    pub(super) fn without(&self, key: &str) -> Self {
        let template = self.template.and_then(|template| template.child(key));
        Self { path: self.name_of(key), offset: self.offset(key), start: self.start, table: None, template }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.written(key).is_some()
    }

    pub(super) fn is_text(&self, key: &str) -> bool {
        self.written(key).is_some_and(|value| value.get_ref().is_str())
    }

    /// The offset of a value in it.
    pub(super) fn at(&self, value: &Spanned<DeValue<'_>>) -> usize {
        self.start + value.span().start
    }

    /// The offset of the section.
    pub(super) fn own_offset(&self) -> usize {
        self.offset
    }

    /// The offset of the key's value, or of the section if it is not written.
    pub(super) fn offset(&self, key: &str) -> usize {
        self.written(key).map_or(self.offset, |value| self.at(value))
    }

    /// The offset of the key itself.
    pub(super) fn key_offset(&self, key: &str) -> usize {
        let entry = self.table.and_then(|table| table.get_key_value(key));
        entry.map_or(self.offset, |(key, _)| self.start + key.span().start)
    }

    /// The offset of the value of the first of the keys that is written.
    pub(super) fn first_offset(&self, keys: &[&str]) -> usize {
        keys.iter().find(|key| self.has(key)).map_or(self.offset, |key| self.offset(key))
    }

    pub(super) fn written(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.and_then(|table| table.get(key))
    }

    /// The name of a key of it in messages.
    pub(super) fn name_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    /// An example of a key's value in one line, usually that of `default.toml`.
    pub(super) fn example(&self, key: &str) -> &'static str {
        match key {
            "request_headers" | "response_headers" => return "{ set = { X-Name = \"value\" } }",
            "error_pages" => return "{ \"404\" = \"/errors/404\" }",
            "access_log" => return "{ file = \"log/site.json\" }",
            "location" => return "{ from = \"http://app.internal/\", to = \"/\" }, or write \"auto\" or \"off\"",
            _ => {}
        }
        let value = self.template.and_then(|template| template.child(key)).and_then(|child| child.value);
        let example = value.and_then(|value| DEFAULT.get(value.span()));
        example.filter(|example| !example.contains('\n')).unwrap_or("…")
    }

    /// The keys that it takes, sorted.
    fn valid_keys(&self) -> Vec<&'t str> {
        let mut valid: Vec<&str> = self.template.into_iter().flat_map(Template::keys).collect();
        valid.sort_unstable();
        valid
    }

    fn default(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.template.and_then(|template| template.child(key)).filter(|child| child.is_default)?.value
    }
}

impl<'t> Reader<'t> {
    pub(super) fn new(
        sources: &'t Sources,
        parsed: &[Parsed<'_>],
        replaced: &'t Replaced,
        template: &'t Template<'t>,
    ) -> Self {
        let broken = vec![SyntaxErrors::default(); parsed.len()];
        let patterns = HashMap::default();
        let mut reader =
            Self { system_roots: None, sources, template, replaced, broken, problems: Vec::new(), patterns };
        for (index, (source, (_, errors))) in sources.iter().zip(parsed).enumerate() {
            if errors.is_empty() {
                continue;
            }
            match foreign::recognised(&source.text) {
                Some((offset, message)) => reader.only_problem(index, source.start + offset, message),
                None => errors.iter().for_each(|error| reader.syntax_error(source.start, error)),
            }
        }
        for (offset, message) in &replaced.problems {
            reader.problem(*offset, message);
        }
        reader
    }

    /// Reports a problem with a whole file, in place of all others in it.
    fn only_problem(&mut self, index: usize, offset: usize, message: String) {
        self.problems.push((Some(offset), message));
        self.broken[index].from = Some(1);
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems;
        problems.sort_by_key(|(offset, _)| *offset);
        problems.into_iter().map(|(offset, message)| self.sources.problem(offset, message)).collect()
    }

    /// The CAs that the system trusts, read once per configuration.
    pub(super) fn system_roots(&mut self) -> Result<Arc<[CertificateDer<'static>]>, String> {
        self.system_roots.get_or_insert_with(transport::system_roots).clone()
    }

    /// The folder that relative paths of a section are relative to.
    pub(super) fn base(&self, section: &Section<'t>) -> &'t Path {
        self.sources.source(section.start).file.parent().unwrap_or(Path::new(""))
    }

    pub(super) fn position(&self, offset: usize) -> Position {
        self.sources.position(offset)
    }

    pub(super) fn origin(&self, offset: usize) -> SourceLocation {
        SourceLocation { file: Arc::clone(&self.sources.source(offset).file), line: self.position(offset).line }
    }

    /// `line 7`, with the file if it is a different one.
    pub(super) fn line(&self, offset: usize, from: usize) -> String {
        let line = self.position(offset).line;
        match self.sources.index(offset) == self.sources.index(from) {
            true => format!("line {line}"),
            false => format!("line {line} of {}", self.sources.source(offset).file.display()),
        }
    }

    pub(super) fn problem(&mut self, offset: usize, message: impl Into<String>) {
        let SyntaxErrors { from, lines } = self.broken_at(offset);
        let line = self.position(offset).line;
        // The replacement of an environment variable that is not set is unknown.
        let is_unset = self.replaced.problems.iter().any(|(unset, _)| *unset == offset);
        if is_unset && self.problems.iter().any(|(known, _)| *known == Some(offset)) {
            return;
        }
        if from.is_none_or(|from| line < from) && !lines.contains(&line) {
            self.problems.push((Some(offset), message.into()));
        }
    }

    /// Reports that something required is missing; `offset` is `None` if it could be anywhere.
    pub(super) fn absent(&mut self, offset: Option<usize>, message: impl Into<String>) {
        if self.broken.iter().all(|broken| broken.from.is_none()) {
            self.problems.push((offset, message.into()));
        }
    }

    /// A text in which environment variables were replaced.
    pub(super) fn replaced(&self, offset: usize) -> Option<&'t Text> {
        self.replaced.texts.get(&offset)
    }

    /// The files, each as a section.
    pub(super) fn roots(&mut self, parsed: &'t [Parsed<'t>]) -> Vec<Section<'t>> {
        let mut roots = Vec::new();
        for (index, (source, (table, _))) in self.sources.iter().zip(parsed).enumerate() {
            let root = Section {
                path: String::new(),
                offset: source.start,
                start: source.start,
                table: Some(table.get_ref()),
                template: Some(self.template),
            };
            match self.of_another_program(&root) {
                Some((offset, message)) => self.only_problem(index, offset, message),
                None => self.check_keys(&root),
            }
            roots.push(root);
        }
        roots
    }

    /// The section under `key` in one of the files.
    pub(super) fn top_section(&mut self, roots: &[Section<'t>], key: &str) -> Section<'t> {
        let mut writing = roots.iter().filter(|root| root.has(key));
        let root = writing.next().unwrap_or(&roots[0]);
        for other in writing {
            let (offset, first) = (other.key_offset(key), root.key_offset(key));
            let message = format!("[{key}] is in {} already: write it once", self.line(first, offset));
            self.problem(offset, message);
        }
        self.section(root, key)
    }

    /// The table under `key`. If it is not written, or is not a table, all defaults.
    pub(super) fn section(&mut self, parent: &Section<'t>, key: &str) -> Section<'t> {
        let path = parent.name_of(key);
        let table = match parent.written(key).map(|value| (value, value.get_ref())) {
            None => None,
            Some((_, DeValue::Table(table))) => Some(table),
            Some((value, DeValue::Array(_))) => {
                let site = if path == "server" { "; nginx's server is a [[site]] here" } else { "" };
                self.problem(parent.at(value), format!("{path} is an array: write [{path}], once{site}"));
                None
            }
            Some((value, _)) => {
                let shown = self.shown(parent, value);
                let message = match path.rsplit('.').next() {
                    Some("respond") => format!(
                        "{path} is {shown}: write respond = {{ status = {} }}",
                        match value.get_ref() {
                            DeValue::Integer(_) => shown.as_str(),
                            _ => "503",
                        }
                    ),
                    Some("proxy_protocol") => format!(
                        "{path} is {shown}: write proxy_protocol = {{ from = [\"10.0.0.0/8\"] }}, with the networks of the load balancers that send the header"
                    ),
                    Some("resolver") => {
                        let server = if value.get_ref().is_str() { &shown } else { "\"10.0.0.2\"" };
                        format!("{path} is {shown}: write resolver = {{ servers = [{server}] }}")
                    }
                    _ => format!("{path} is {shown}: write a section [{path}]"),
                };
                self.problem(parent.at(value), message);
                None
            }
        };
        let template = parent.template.and_then(|template| template.child(key));
        let section = Section { path, offset: parent.offset(key), start: parent.start, table, template };
        self.check_keys(&section);
        section
    }

    /// The tables of an array such as `[[pool]]` in all files. If there are none, the message ends with `fix`.
    pub(super) fn list(&mut self, roots: &[Section<'t>], key: &str, fix: &str) -> Vec<Section<'t>> {
        let found: Vec<_> = roots.iter().flat_map(|root| self.tables(root, key)).collect();
        let is_empty = |root: &Section<'t>| match root.written(key) {
            None => true,
            Some(value) => value.get_ref().as_array().is_some_and(|elements| elements.is_empty()),
        };
        if roots.iter().all(is_empty) {
            self.absent(None, format!("there is no [[{key}]]: {fix}"));
        }
        found
    }

    /// The tables of an array such as `[[site.route]]`; none if it is not written.
    pub(super) fn tables(&mut self, parent: &Section<'t>, key: &str) -> Vec<Section<'t>> {
        let name = parent.name_of(key);
        match parent.written(key).map(|value| (value, value.get_ref())) {
            None => Vec::new(),
            Some((_, DeValue::Array(elements))) => {
                let (tables, others): (Vec<_>, Vec<_>) = elements.iter().partition(|e| e.get_ref().is_table());
                for other in others {
                    self.no_section(parent, &name, other);
                }
                tables.into_iter().map(|table| self.element(parent, key, table)).collect()
            }
            Some((value, DeValue::Table(_))) => {
                let message = format!("there can be several of {name}: write [[{name}]], with two brackets");
                self.problem(parent.at(value), message);
                vec![self.element(parent, key, value)]
            }
            Some((value, _)) => {
                self.no_section(parent, &name, value);
                Vec::new()
            }
        }
    }

    /// One inline table, or several in an array.
    pub(super) fn one_or_several(&mut self, parent: &Section<'t>, key: &str) -> Option<Vec<Section<'t>>> {
        let value = parent.written(key)?;
        let elements = match value.get_ref() {
            DeValue::Array(elements) => elements.iter().collect(),
            _ => vec![value],
        };
        let mut sections = Some(Vec::new());
        for element in elements {
            let section = match element.get_ref() {
                DeValue::Table(_) => Some(self.element(parent, key, element)),
                _ => {
                    let message = format!(
                        "{} is {}: write a table, such as {}",
                        parent.name_of(key),
                        self.shown(parent, element),
                        parent.example(key)
                    );
                    self.problem(parent.at(element), message);
                    None
                }
            };
            super::collect(&mut sections, section);
        }
        sections
    }

    /// The values of a table with user-defined keys, in file order; none if it is not written.
    pub(super) fn entries(&mut self, section: &Section<'t>, key: &str) -> Option<Vec<Entry<'t>>> {
        let Some(value) = section.written(key) else { return Some(Vec::new()) };
        let DeValue::Table(table) = value.get_ref() else {
            let (shown, example) = (self.shown(section, value), section.example(key));
            let message = format!("{} is {shown}: write a table, such as {example}", section.name_of(key));
            self.problem(section.at(value), message);
            return None;
        };
        let entry = |(key, value): (&'t Spanned<_>, &'t Spanned<DeValue<'t>>)| {
            let name: &'t Cow<'t, str> = key.get_ref();
            Entry { name: name.as_ref(), key_offset: section.start + key.span().start, value }
        };
        let mut entries: Vec<_> = table.iter().map(entry).collect();
        entries.sort_by_key(|entry| entry.key_offset);
        Some(entries)
    }

    /// A table under a user-defined key. Its valid keys are those of `*` below `key`.
    pub(super) fn free_section(
        &mut self,
        root: &Section<'t>,
        path: &str,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Option<Section<'t>> {
        let DeValue::Table(table) = value.get_ref() else {
            let shown = self.shown(root, value);
            self.problem(root.at(value), format!("{path} is {shown}: write a table, such as {}", EXAMPLE_OF_VALUES));
            return None;
        };
        let template = root.template.and_then(|template| template.child(key)?.child("*"));
        let section =
            Section { path: path.to_owned(), offset: root.at(value), start: root.start, table: Some(table), template };
        self.check_keys(&section);
        Some(section)
    }

    /// The table of an error page, which is under a user-defined key.
    pub(super) fn free_page(
        &mut self,
        section: &Section<'t>,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Section<'t> {
        let template = section.template.and_then(|template| template.child("error_pages")?.child("*"));
        let table = value.get_ref().as_table();
        let page =
            Section { path: section.name_of(key), offset: section.at(value), start: section.start, table, template };
        self.check_keys(&page);
        page
    }

    fn no_section(&mut self, parent: &Section<'t>, name: &str, value: &Spanned<DeValue<'t>>) {
        let message = format!("{name} is {}: write [[{name}]] above its settings", self.shown(parent, value));
        self.problem(parent.at(value), message);
    }

    /// One table of an array of tables.
    pub(super) fn element(
        &mut self,
        parent: &Section<'t>,
        key: &str,
        element: &'t Spanned<DeValue<'t>>,
    ) -> Section<'t> {
        let section = Section {
            path: parent.name_of(key),
            offset: parent.at(element),
            start: parent.start,
            table: element.get_ref().as_table(),
            template: parent.template.and_then(|template| template.child(key)),
        };
        self.check_keys(&section);
        section
    }

    /// The elements of the array under `key`, or of its default.
    pub(super) fn elements(&mut self, section: &Section<'t>, key: &str) -> Option<&'t [Spanned<DeValue<'t>>]> {
        let value = section.written(key).or_else(|| section.default(key))?;
        match value.get_ref() {
            DeValue::Array(elements) => Some(elements),
            _ => {
                let shown = self.shown(section, value);
                let message = format!("{} is {shown}: write an array, such as [{shown}]", section.name_of(key));
                self.problem(section.at(value), message);
                None
            }
        }
    }

    /// The value of `key`, or its default.
    pub(super) fn value<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        match section.written(key) {
            Some(value) => self.read_at(section, key, value, read),
            None => read(section.default(key)?.get_ref()).ok(),
        }
    }

    /// The value of `key` if it is written. `None`: it is invalid.
    pub(super) fn optional<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<Option<T>> {
        match section.written(key) {
            Some(value) => self.read_at(section, key, value, read).map(Some),
            None => Some(None),
        }
    }

    /// The expression under `key`, which has no default.
    pub(super) fn regex(&mut self, section: &Section<'t>, key: &str) -> Option<Pattern> {
        let known = RefCell::new(std::mem::take(&mut self.patterns));
        let read = self.required(section, key, |value| {
            if let Some(known) = value.as_str().and_then(|text| known.borrow().get(text).cloned()) {
                return Ok(known);
            }
            let pattern = values::regex(value)?;
            known.borrow_mut().insert(pattern.text().to_owned(), pattern.clone());
            Ok(pattern)
        });
        self.patterns = known.into_inner();
        read
    }

    /// The value of `key`, which has no default.
    pub(super) fn required<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        match section.written(key) {
            Some(value) => self.read_at(section, key, value, read),
            None => {
                self.missing(section, key);
                None
            }
        }
    }

    /// The values of the array under `key`, or of its default.
    pub(super) fn each<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<Vec<T>> {
        let elements = self.elements(section, key)?;
        let read: Vec<_> = elements.iter().map(|element| self.read_at(section, key, element, &read)).collect();
        read.into_iter().collect()
    }

    pub(super) fn read_at<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        value: &Spanned<DeValue<'t>>,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        match read(value.get_ref()) {
            Ok(read) => Some(read),
            Err(fix) => {
                let message = format!("{} is {}: write {fix}", section.name_of(key), self.shown(section, value));
                self.problem(section.at(value), message);
                None
            }
        }
    }

    pub(super) fn missing(&mut self, section: &Section<'t>, key: &str) {
        let message = format!("{} is missing: write {key} = {}", section.name_of(key), section.example(key));
        self.absent(Some(section.offset), message);
    }

    /// The problem with a file none of whose keys is known, or resembles one. Its offset is that of the first key.
    fn of_another_program(&self, root: &Section<'t>) -> Option<(usize, String)> {
        let valid = root.valid_keys();
        let key = |key: &'t Spanned<Cow<'t, str>>| (root.start + key.span().start, key.get_ref().as_ref());
        let mut keys: Vec<(usize, &str)> = root.table?.keys().map(key).collect();
        keys.sort_unstable();
        let is_foreign =
            |key: &str| !valid.contains(&key) && !UNFINISHED.contains(&key) && self.fix_of_key(root, key).is_empty();
        // A single key is more likely misspelt.
        if keys.len() < 2 || !keys.iter().all(|(_, key)| is_foreign(key)) || self.broken_at(root.start).from.is_some() {
            return None;
        }
        let shown: Vec<_> = keys.iter().take(MAX_SHOWN_KEYS).map(|(_, key)| shortened(key)).collect();
        let message = format!(
            "no key of this file is a setting of Evenkeel ({}{}): the file takes {}; `evenkeel config --default` prints every setting",
            shown.join(", "),
            if keys.len() > MAX_SHOWN_KEYS { ", …" } else { "" },
            valid.join(", ")
        );
        Some((keys.first()?.0, message))
    }

    fn broken_at(&self, offset: usize) -> &SyntaxErrors {
        &self.broken[self.sources.index(offset)]
    }

    /// What to write in place of an unknown key; empty: nothing is known of it.
    fn fix_of_key(&self, section: &Section<'t>, name: &str) -> String {
        let fix = in_section(&section.path, name)
            .or_else(|| elsewhere(name))
            .unwrap_or_else(|| did_you_mean(name, &section.valid_keys()));
        if !fix.is_empty() {
            return fix;
        }
        if section.path.ends_with("_headers")
            && let Some(value) = section.written(name).filter(|value| value.get_ref().is_str())
        {
            return format!("write set = {{ {name} = {} }} for a field; ", self.shown(section, value));
        }
        match self.homes(name).as_slice() {
            [home] => format!("it belongs in {}; ", heading(home)),
            _ => String::new(),
        }
    }

    /// Refuses unknown keys, and those that are not implemented yet.
    fn check_keys(&mut self, section: &Section<'t>) {
        let valid = section.valid_keys();
        for key in section.table.into_iter().flat_map(|table| table.keys()) {
            let (name, offset) = (key.get_ref().as_ref(), section.start + key.span().start);
            let full = section.name_of(&shortened(name));
            if valid.contains(&name) {
                continue;
            }
            let is_of_site = matches!(section.path.as_str(), "" | "site" | "site.route" | "route");
            if is_of_site && UNFINISHED.contains(&name) {
                self.problem(offset, format!("{full} is not implemented yet in this version of Evenkeel: remove it"));
                continue;
            }
            let fix = self.fix_of_key(section, name);
            let message =
                format!("{full} is not a setting: {fix}{} takes {}", heading(&section.path), valid.join(", "));
            self.problem(offset, message);
        }
    }

    /// The sections that have `key` as a setting; those of sites only if there are no others.
    fn homes(&self, key: &str) -> Vec<String> {
        fn search(template: &Template<'_>, path: &str, key: &str, homes: &mut Vec<String>) {
            if !path.is_empty() && template.child(key).is_some() {
                homes.push(path.to_owned());
            }
            for (name, inner) in &template.children {
                search(inner, &join(path, name), key, homes);
            }
        }
        let mut homes = Vec::new();
        search(self.template, "", key, &mut homes);
        let (of_sites, others): (Vec<_>, Vec<_>) = homes.into_iter().partition(|home| home.starts_with("site"));
        if others.is_empty() { of_sites } else { others }
    }

    /// Reports one problem per line: further errors in a line mostly follow from the first.
    fn syntax_error(&mut self, start: usize, error: &Error) {
        let span = error.span().unwrap_or_default();
        let offset = start + span.start;
        let source = self.sources.source(offset);
        let line = self.position(offset).line;
        let text = source.text.get(span).unwrap_or_default();
        let header = source.text.lines().nth(line - 1).unwrap_or_default().trim_start().starts_with('[');
        let (harmless, message) = match error.message() {
            "duplicate key" => (!header, format!("{} is written twice: remove one of the two", shortened(text))),
            message if message.starts_with("string values must be quoted") && !text.trim().is_empty() => {
                (true, format!("{0} is not TOML: write it in quotes, \"{0}\"", shortened(text)))
            }
            message if message.contains("escape") || message.contains("unicode value") => {
                let written = source.text.lines().nth(line - 1).unwrap_or_default();
                let example = written.split('"').nth(1).filter(|text| !text.contains('\''));
                let fix = example.map_or_else(String::new, |text| format!(", such as '{}'", shortened(text)));
                (
                    true,
                    format!(
                        "a \\ means something within double quotes: write the text in single quotes{fix}, or \\\\ for each ({message})"
                    ),
                )
            }
            message => (false, format!("this is not TOML: {message}")),
        };
        let index = self.sources.index(offset);
        let broken = &mut self.broken[index];
        match harmless {
            true => broken.lines.push(line),
            false => broken.from = Some(broken.from.map_or(line, |from| from.min(line))),
        }
        let is_here = |known: usize| self.sources.index(known) == index && self.position(known).line == line;
        if !self.problems.iter().any(|(known, _)| known.is_some_and(is_here)) {
            self.problems.push((Some(offset), message));
        }
    }

    /// A value as written in the file.
    pub(super) fn shown(&self, section: &Section<'t>, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref() {
            DeValue::Table(_) => "a table".to_owned(),
            DeValue::Array(_) => "an array".to_owned(),
            _ => shortened(self.sources.source(section.start).text.get(value.span()).unwrap_or_default()),
        }
    }
}

/// Line and column of an offset in the text.
pub(super) fn position(text: &str, offset: usize) -> Position {
    let before = &text[..text.floor_char_boundary(offset)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    // Editors do not count a byte order mark.
    let columns = before[line_start..].chars().filter(|c| *c != '\u{feff}').count();
    Position { line: before.matches('\n').count() + 1, column: columns + 1 }
}

/// `did you mean "…"? `, if one of the choices is similar to the word, else empty.
pub(super) fn did_you_mean(word: &str, choices: &[&str]) -> String {
    let close = |choice: &&str| {
        let distance = edits(&word.to_ascii_lowercase(), choice);
        (distance <= 1 + choice.len() / 4 && distance < choice.len()).then_some(distance)
    };
    let best = choices.iter().filter_map(|choice| Some((close(choice)?, choice))).min_by_key(|(distance, _)| *distance);
    best.map_or(String::new(), |(_, choice)| format!("did you mean \"{choice}\"? "))
}

/// The number of characters to insert, remove, replace or swap to turn one word into the other.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    let mut previous = None;
    for (i, x) in a.chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut fewest = (last[j] + usize::from(x != *y)).min(last[j + 1] + 1).min(row[j] + 1);
            if j > 0 && previous == Some(*y) && b[j - 1] == x {
                fewest = fewest.min(before_last[j - 1] + 1);
            }
            row.push(fewest);
        }
        before_last = std::mem::replace(&mut last, row);
        previous = Some(x);
    }
    last[b.len()]
}

/// The heading of a section in a file.
pub(super) fn heading(path: &str) -> String {
    match path {
        "" => "the file".to_owned(),
        "listener" | "pool" | "route" | "site" | "site.route" => format!("[[{path}]]"),
        // Usually an inline table.
        "pool.backends" => "a backend".to_owned(),
        _ if path.starts_with("site.") || path.starts_with("values.") => path.to_owned(),
        _ => format!("[{path}]"),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

pub(super) fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.len() => format!("{line}…"),
        None => line.to_owned(),
    }
}
