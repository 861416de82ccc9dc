//! Walks a parsed file and notes what is wrong instead of stopping at it.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::values::Read;
use super::{DEFAULT, Position, Problem};
use crate::config::site::Origin;

/// Keys that `default.toml` shows in comments only, since there can be no default for them.
const WITHOUT_DEFAULT: &[(&str, &[&str])] = &[("listener", &["name", "tls"]), ("listener.tls", super::TLS_KEYS)];

/// Longest part of a value that a message repeats.
const SHOWN_CHARS: usize = 48;

pub struct Reader<'t> {
    text: &'t str,
    base: &'t Path,
    file: Arc<Path>,
    defaults: Option<&'t DeTable<'t>>,
    /// From this line on the file may have been understood wrongly, and what is absent may only be unread: nothing
    /// is said of either before the syntax is right.
    broken_from: Option<usize>,
    /// Lines with a syntax error that harms no other line.
    broken_lines: Vec<usize>,
    problems: Vec<Problem>,
}

/// A table of the file, beside the table of `default.toml` that lists its keys and their defaults.
pub struct Section<'t> {
    /// As messages name it: `pool.probe`; empty for the whole file.
    path: String,
    place: usize,
    /// `None`: not written, all defaults.
    table: Option<&'t DeTable<'t>>,
    template: Option<&'t DeTable<'t>>,
}

impl<'t> Section<'t> {
    pub fn is_written(&self) -> bool {
        self.table.is_some()
    }

    pub fn has(&self, key: &str) -> bool {
        self.written(key).is_some()
    }

    pub fn is_text(&self, key: &str) -> bool {
        self.written(key).is_some_and(|value| value.get_ref().is_str())
    }

    /// Where the key's value stands; the section itself when it is not written.
    pub fn place(&self, key: &str) -> usize {
        self.written(key).map_or(self.place, |value| value.span().start)
    }

    /// Where the key itself stands.
    pub fn key_place(&self, key: &str) -> usize {
        let entry = self.table.and_then(|table| table.get_key_value(key));
        entry.map_or(self.place, |(key, _)| key.span().start)
    }

    /// Where the first of the keys that are written has its value.
    pub fn first_place(&self, keys: &[&str]) -> usize {
        keys.iter().find(|key| self.has(key)).map_or(self.place, |key| self.place(key))
    }

    fn written(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.and_then(|table| table.get(key))
    }

    fn default(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.template.and_then(|template| template.get(key))
    }

    fn name_of(&self, key: &str) -> String {
        join(&self.path, key)
    }

    fn valid_keys(&self) -> Vec<&'t str> {
        let with_default = self.template.into_iter().flat_map(|template| template.keys());
        let without = WITHOUT_DEFAULT.iter().filter(|(path, _)| *path == self.path).flat_map(|(_, keys)| *keys);
        with_default.map(|key| key.get_ref().as_ref()).chain(without.copied()).collect()
    }
}

impl<'t> Reader<'t> {
    pub fn new(text: &'t str, file: &'t Path, syntax_errors: &[Error]) -> Self {
        let mut reader = Self {
            text,
            base: file.parent().unwrap_or(Path::new("")),
            file: file.into(),
            defaults: None,
            broken_from: None,
            broken_lines: Vec::new(),
            problems: Vec::new(),
        };
        for error in syntax_errors {
            reader.syntax_error(error);
        }
        reader
    }

    pub fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort_by_key(|problem| problem.position);
        self.problems
    }

    /// Where relative paths start.
    pub fn base(&self) -> &'t Path {
        self.base
    }

    pub fn position(&self, place: usize) -> Position {
        position(self.text, place)
    }

    pub fn origin(&self, place: usize) -> Origin {
        Origin { file: Arc::clone(&self.file), line: self.position(place).line }
    }

    pub fn problem(&mut self, place: usize, message: impl Into<String>) {
        let position = self.position(place);
        let is_sure = self.broken_from.is_none_or(|line| position.line < line);
        if is_sure && !self.broken_lines.contains(&position.line) {
            self.problems.push(Problem { position: Some(position), message: message.into() });
        }
    }

    /// Something that should be in the file is not; `place` is `None` when it could be anywhere.
    pub fn absent(&mut self, place: Option<usize>, message: impl Into<String>) {
        if self.broken_from.is_none() {
            let position = place.map(|place| self.position(place));
            self.problems.push(Problem { position, message: message.into() });
        }
    }

    pub fn root(&mut self, written: &'t DeTable<'t>, defaults: &'t DeTable<'t>) -> Section<'t> {
        self.defaults = Some(defaults);
        let root = Section { path: String::new(), place: 0, table: Some(written), template: Some(defaults) };
        self.refuse_unknown_keys(&root);
        root
    }

    /// The table that `key` holds. Unwritten, or something else than a table, it is all defaults.
    pub fn section(&mut self, parent: &Section<'t>, key: &str) -> Section<'t> {
        let path = parent.name_of(key);
        let table = match parent.written(key).map(|value| (value, value.get_ref())) {
            None => None,
            Some((_, DeValue::Table(table))) => Some(table),
            Some((value, DeValue::Array(_))) => {
                self.problem(value.span().start, format!("{path} is an array: write [{path}], once"));
                None
            }
            Some((value, _)) => {
                let shown = self.shown(value);
                self.problem(value.span().start, format!("{path} is {shown}: write a section [{path}]"));
                None
            }
        };
        let section = Section { path, place: parent.place(key), table, template: table_of(parent.default(key)) };
        self.refuse_unknown_keys(&section);
        section
    }

    /// The tables of an array such as `[[pool]]`; without any, `fix` says what to do.
    pub fn list(&mut self, root: &Section<'t>, key: &str, fix: &str) -> Vec<Section<'t>> {
        let value = root.written(key);
        match value.map(|value| (value, value.get_ref())) {
            Some((_, DeValue::Array(elements))) if !elements.is_empty() => {
                let (tables, others): (Vec<_>, Vec<_>) = elements.iter().partition(|e| e.get_ref().is_table());
                for other in others {
                    self.no_section(key, other);
                }
                tables.into_iter().map(|table| self.element(root, key, table)).collect()
            }
            Some((value, DeValue::Table(_))) => {
                let message = format!("there can be several of {key}: write [[{key}]], with two brackets");
                self.problem(value.span().start, message);
                vec![self.element(root, key, value)]
            }
            None | Some((_, DeValue::Array(_))) => {
                self.absent(None, format!("there is no [[{key}]]: {fix}"));
                Vec::new()
            }
            Some((value, _)) => {
                self.no_section(key, value);
                Vec::new()
            }
        }
    }

    fn no_section(&mut self, key: &str, value: &Spanned<DeValue<'t>>) {
        let message = format!("{key} is {}: write [[{key}]] above its settings", self.shown(value));
        self.problem(value.span().start, message);
    }

    /// One table of an array of them.
    pub fn element(&mut self, parent: &Section<'t>, key: &str, element: &'t Spanned<DeValue<'t>>) -> Section<'t> {
        let section = Section {
            path: parent.name_of(key),
            place: element.span().start,
            table: table_of(Some(element)),
            template: table_of(parent.default(key)),
        };
        self.refuse_unknown_keys(&section);
        section
    }

    /// The elements of the array that `key` holds, or of its default.
    pub fn elements(&mut self, section: &Section<'t>, key: &str) -> Option<&'t [Spanned<DeValue<'t>>]> {
        let value = section.written(key).or_else(|| section.default(key))?;
        match value.get_ref() {
            DeValue::Array(elements) => Some(elements),
            _ => {
                let shown = self.shown(value);
                let message = format!("{} is {shown}: write an array, such as [{shown}]", section.name_of(key));
                self.problem(value.span().start, message);
                None
            }
        }
    }

    /// The value of `key`, or its default.
    pub fn value<T>(&mut self, section: &Section<'t>, key: &str, read: impl Fn(&DeValue<'t>) -> Read<T>) -> Option<T> {
        match section.written(key) {
            Some(value) => self.read_at(section, key, value, read),
            None => read(section.default(key)?.get_ref()).ok(),
        }
    }

    /// The value of `key`, which has no default.
    pub fn required<T>(
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

    /// The values of the array that `key` holds, or of its default.
    pub fn each<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<Vec<T>> {
        let elements = self.elements(section, key)?;
        let read: Vec<_> = elements.iter().map(|element| self.read_at(section, key, element, &read)).collect();
        read.into_iter().collect()
    }

    pub fn read_at<T>(
        &mut self,
        section: &Section<'t>,
        key: &str,
        value: &Spanned<DeValue<'t>>,
        read: impl Fn(&DeValue<'t>) -> Read<T>,
    ) -> Option<T> {
        match read(value.get_ref()) {
            Ok(read) => Some(read),
            Err(fix) => {
                let message = format!("{} is {}: write {fix}", section.name_of(key), self.shown(value));
                self.problem(value.span().start, message);
                None
            }
        }
    }

    pub fn missing(&mut self, section: &Section<'t>, key: &str) {
        let example = section.default(key).and_then(|value| DEFAULT.get(value.span()));
        let example = example.filter(|example| !example.contains('\n')).unwrap_or("…");
        let message = format!("{} is missing: write {key} = {example}", section.name_of(key));
        self.absent(Some(section.place), message);
    }

    fn refuse_unknown_keys(&mut self, section: &Section<'t>) {
        let valid = section.valid_keys();
        for key in section.table.into_iter().flat_map(|table| table.keys()) {
            let name = key.get_ref().as_ref();
            if valid.contains(&name) {
                continue;
            }
            let mut fix = did_you_mean(name, &valid);
            if fix.is_empty()
                && let [home] = self.homes(name).as_slice()
            {
                fix = format!("it belongs in {}; ", heading(home));
            }
            let name = section.name_of(&shortened(name));
            let message =
                format!("{name} is not a setting: {fix}{} takes {}", heading(&section.path), valid.join(", "));
            self.problem(key.span().start, message);
        }
    }

    /// The sections of which `key` is a setting.
    fn homes(&self, key: &str) -> Vec<String> {
        fn search(table: &DeTable<'_>, path: &str, key: &str, homes: &mut Vec<String>) {
            if !path.is_empty() && table.contains_key(key) {
                homes.push(path.to_owned());
            }
            for (name, value) in table {
                if let Some(inner) = table_of(Some(value)) {
                    search(inner, &join(path, name.get_ref()), key, homes);
                }
            }
        }
        let mut homes = Vec::new();
        if let Some(defaults) = self.defaults {
            search(defaults, "", key, &mut homes);
        }
        homes
    }

    /// One problem for each line: what comes after the first error in a line mostly follows from it.
    fn syntax_error(&mut self, error: &Error) {
        let span = error.span().unwrap_or_default();
        let position = self.position(span.start);
        let text = self.text.get(span).unwrap_or_default();
        let header = self.line(position.line).trim_start().starts_with('[');
        let (harmless, message) = match error.message() {
            "duplicate key" => (!header, format!("{} is written twice: remove one of the two", shortened(text))),
            message if message.starts_with("string values must be quoted") && !text.trim().is_empty() => {
                (true, format!("{0} is not TOML: write it in quotes, \"{0}\"", shortened(text)))
            }
            message => (false, format!("this is not TOML: {message}")),
        };
        match harmless {
            true => self.broken_lines.push(position.line),
            false => self.broken_from = Some(self.broken_from.map_or(position.line, |line| line.min(position.line))),
        }
        let known = self.problems.iter().any(|problem| problem.position.is_some_and(|p| p.line == position.line));
        if !known {
            self.problems.push(Problem { position: Some(position), message });
        }
    }

    fn line(&self, line: usize) -> &'t str {
        self.text.lines().nth(line - 1).unwrap_or_default()
    }

    /// A value as it stands in the file.
    fn shown(&self, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref() {
            DeValue::Table(_) => "a table".to_owned(),
            DeValue::Array(_) => "an array".to_owned(),
            _ => shortened(self.text.get(value.span()).unwrap_or_default()),
        }
    }
}

/// Line and column of a byte of the text.
pub fn position(text: &str, place: usize) -> Position {
    let before = &text[..text.floor_char_boundary(place)];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    // A byte order mark is no character that an editor counts.
    let columns = before[line_start..].chars().filter(|c| *c != '\u{feff}').count();
    Position { line: before.matches('\n').count() + 1, column: columns + 1 }
}

/// `did you mean "…"? ` when one of the choices is likely a word mistyped, else nothing.
pub fn did_you_mean(word: &str, choices: &[&str]) -> String {
    let close = |choice: &&str| {
        let distance = edits(&word.to_ascii_lowercase(), choice);
        (distance <= 1 + choice.len() / 4 && distance < choice.len()).then_some(distance)
    };
    let best = choices.iter().filter_map(|choice| Some((close(choice)?, choice))).min_by_key(|(distance, _)| *distance);
    best.map_or(String::new(), |(_, choice)| format!("did you mean \"{choice}\"? "))
}

/// How many characters to insert, remove, replace or swap with their neighbour to make one word the other.
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

/// The table, or the first table of the array.
fn table_of<'t>(value: Option<&'t Spanned<DeValue<'t>>>) -> Option<&'t DeTable<'t>> {
    match value?.get_ref() {
        DeValue::Table(table) => Some(table),
        DeValue::Array(elements) => elements.first().and_then(|first| first.get_ref().as_table()),
        _ => None,
    }
}

/// A section as a file shows it.
fn heading(path: &str) -> String {
    match path {
        "" => "the file".to_owned(),
        "listener" | "pool" | "route" => format!("[[{path}]]"),
        // An inline table as a rule.
        "pool.backends" => "a backend".to_owned(),
        _ => format!("[{path}]"),
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.len() => format!("{line}…"),
        None => line.to_owned(),
    }
}
