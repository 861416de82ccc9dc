//! The files of a configuration: the main file and those that it includes.

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use toml::Spanned;
use toml::de::{DeTable, DeValue, Error};

use super::reader;
use crate::config::{Position, Problem};

/// All texts of a configuration, concatenated: an offset is a position in the whole.
#[derive(Debug, Clone)]
pub(super) struct Sources(Vec<Source>);

#[derive(Debug, Clone)]
pub(super) struct Source {
    pub file: Arc<Path>,
    pub text: String,
    /// The offset of its first byte.
    pub start: usize,
    /// Where each line of the text begins.
    lines: Vec<usize>,
}

/// Messages about included files, with their offsets.
#[derive(Debug, Default)]
pub(super) struct Included {
    pub problems: Vec<(usize, String)>,
    pub warnings: Vec<(usize, String)>,
}

/// The tables of a file, and its syntax errors.
pub(super) type Parsed<'t> = (Spanned<DeTable<'t>>, Vec<Error>);

/// Limit on the files of a configuration.
const MAX_FILES: usize = 10_000;

impl Sources {
    /// The files that `text`, as the content of `file`, includes, and messages about them.
    pub(super) fn of(text: &str, file: &Path) -> (Self, Included) {
        let mut sources = Self(vec![Source::new(file, text.to_owned(), 0)]);
        let mut included = Included::default();
        let mut next = 0;
        while next < sources.0.len() {
            sources.include_from(next, &mut included);
            next += 1;
        }
        (sources, included)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Source> {
        self.0.iter()
    }

    pub(super) fn parse(&self) -> Vec<Parsed<'_>> {
        self.0.iter().map(|source| DeTable::parse_recoverable(&source.text)).collect()
    }

    pub(super) fn index(&self, offset: usize) -> usize {
        self.0.partition_point(|source| source.start <= offset).saturating_sub(1)
    }

    pub(super) fn source(&self, offset: usize) -> &Source {
        &self.0[self.index(offset)]
    }

    pub(super) fn position(&self, offset: usize) -> Position {
        let source = self.source(offset);
        let at = offset - source.start;
        let line = source.lines.partition_point(|start| *start <= at).max(1);
        let start = source.lines.get(line - 1).copied().unwrap_or_default();
        Position { line, ..reader::position(&source.text[start..], at - start) }
    }

    /// A problem at an offset; without one, in the main file.
    pub(super) fn problem(&self, offset: Option<usize>, message: String) -> Problem {
        let file = offset.map(|offset| self.index(offset)).filter(|index| *index > 0);
        Problem {
            file: file.map(|index| Arc::clone(&self.0[index].file)),
            position: offset.map(|offset| self.position(offset)),
            message,
        }
    }

    fn include_from(&mut self, index: usize, Included { problems, warnings }: &mut Included) {
        let Source { file, text, start, .. } = self.0[index].clone();
        let (table, _) = DeTable::parse_recoverable(&text);
        let Some(value) = table.get_ref().get("include") else { return };
        let shown = |value: &Spanned<DeValue<'_>>| text.get(value.span()).unwrap_or_default().to_owned();
        let elements = match value.get_ref() {
            DeValue::Array(elements) => elements.iter().collect(),
            _ => vec![value],
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        for element in elements {
            let offset = start + element.span().start;
            let pattern =
                match (value.get_ref().is_array(), element.get_ref().as_str().filter(|pattern| !pattern.is_empty())) {
                    (true, Some(pattern)) => pattern,
                    _ => {
                        let message =
                            format!("include is {}: write [\"sites/*.toml\"]", reader::shortened(&shown(element)));
                        problems.push((offset, message));
                        continue;
                    }
                };
            match matching(folder, pattern) {
                Ok(files) => {
                    if files.is_empty() {
                        let message = format!(
                            "include is \"{pattern}\", which is the name of no file: write another one, or remove it"
                        );
                        warnings.push((offset, message));
                    }
                    for file in files {
                        if let Err(message) = self.add(&file) {
                            problems.push((offset, format!("include is \"{pattern}\", {message}")));
                        }
                    }
                }
                Err(message) => problems.push((offset, format!("include is \"{pattern}\", {message}"))),
            }
        }
    }

    fn add(&mut self, file: &Path) -> Result<(), String> {
        let shown = file.display();
        let same = |source: &Source| {
            *source.file == *file
                || fs::canonicalize(&source.file).ok().is_some_and(|known| fs::canonicalize(file).ok() == Some(known))
        };
        if self.0.iter().any(same) {
            return Err(format!("but {shown} is a part of this configuration already: include each file once"));
        }
        if self.0.len() >= MAX_FILES {
            return Err(format!("which makes more than {MAX_FILES} files: include fewer"));
        }
        let is_file = fs::metadata(file).map_err(|e| unreadable(file, &e))?.is_file();
        if !is_file {
            return Err(format!(
                "but {shown} is not a file: write the path of one, or \"*.toml\" for those in a folder"
            ));
        }
        let bytes = fs::read(file).map_err(|e| unreadable(file, &e))?;
        let text = String::from_utf8(bytes).map_err(|_| format!("but {shown} is not UTF-8: save it as UTF-8 text"))?;
        // A gap of one byte, so that the end of a file differs from the start of the next.
        let start = self.0.last().map_or(0, |last| last.start + last.text.len() + 1);
        self.0.push(Source::new(file, text, start));
        Ok(())
    }
}

impl Source {
    fn new(file: &Path, text: String, start: usize) -> Self {
        let behind_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(behind_breaks).collect();
        Self { file: file.into(), text, start, lines }
    }
}

fn unreadable(file: &Path, error: &io::Error) -> String {
    format!("but {} cannot be read ({error}): write the path of a file that can be", file.display())
}

/// The files that match a pattern, ordered by name. `*` and `?` match within one name. Names that begin with a dot
/// match only if the pattern begins with a dot.
fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = vec![if Path::new(pattern).is_absolute() { PathBuf::new() } else { folder.to_owned() }];
    let mut is_wild = false;
    for component in Path::new(pattern).components() {
        let name = match component {
            Component::Normal(name) => name.to_str().unwrap_or_default(),
            other => {
                found.iter_mut().for_each(|path| path.push(other));
                continue;
            }
        };
        if !name.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(name));
            continue;
        }
        is_wild = true;
        let mut inside = Vec::new();
        for folder in &found {
            let shown = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            let entries = match fs::read_dir(shown) {
                Ok(entries) => entries,
                // A match of an earlier part of the pattern need not be a folder.
                Err(e) if found.len() > 1 && e.kind() == io::ErrorKind::NotADirectory => continue,
                Err(e) => {
                    return Err(format!("but the folder {} cannot be read ({e}): write another", shown.display()));
                }
            };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            inside
                .extend(names.filter(|entry| fits(name.as_bytes(), entry.as_bytes())).map(|entry| folder.join(entry)));
        }
        found = inside;
    }
    found.sort();
    if is_wild {
        found.retain(|path| path.is_file());
    }
    Ok(found)
}

fn fits(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    // The position of the last star, and what it currently matches.
    let (mut at, mut pattern_at, mut star) = (0, 0, None);
    while at < name.len() {
        match pattern.get(pattern_at) {
            Some(b'*') => {
                star = Some((pattern_at, at));
                pattern_at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[at] => {
                pattern_at += 1;
                at += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    pattern_at = star_at + 1;
                    at = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[pattern_at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn include_wildcards_match_within_a_file_name() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", false),
            (".*", ".toml", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?.toml", "ab.toml", false),
            ("*", "", true),
            ("", "a", false),
            ("**a", "bca", true),
        ] {
            assert_eq!(fits(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }
}
