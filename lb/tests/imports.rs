//! Which module may use which. A new edge has to be added to the table here, so that a reviewer sees it. All paths in
//! the sources count: `use`, `super::` and paths within code. What only tests use does not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module with those that it may use, indirect ones too: what is named here for `http` holds for `listen` as well.
/// The longest name that fits a module counts.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["cli", "server", "signals"]),
    ("signals", &["server"]),
    ("cli", &["http", "log", "probe::resolver", "state", "user"]),
    ("pingora", &["log", "server"]),
    ("server", &["admin", "probe", "listen", "log", "user"]),
    ("admin", &["connection_limit", "control", "shutdown"]),
    ("probe", &["control", "http::io", "probe::resolver"]),
    ("probe::resolver", &["backend"]),
    ("listen", &["http", "tls", "user"]),
    ("http", &["http::h1", "http::io", "access_log", "connection_limit", "shutdown"]),
    ("http::h1", &[]),
    ("http::io", &["dial"]),
    ("dial", &[]),
    ("access_log", &["exchange", "lines"]),
    ("exchange", &["control"]),
    ("control", &["snapshot", "state"]),
    ("snapshot", &["site", "pool"]),
    ("state", &["change"]),
    ("change", &[]),
    ("tls", &["site"]),
    ("site", &["pool"]),
    ("pool", &["balance", "dial", "sticky"]),
    ("sticky", &["balance"]),
    ("balance", &["backend"]),
    ("backend", &["health", "metrics"]),
    ("health", &[]),
    ("metrics", &[]),
    ("log", &["lines"]),
    ("lines", &[]),
    ("connection_limit", &[]),
    ("user", &[]),
    ("shutdown", &[]),
];

/// Every module may use these; they use only those after them in the list.
const LOWEST: &[&str] = &["failure", "config", "value", "message", "date", "clock", "plant"];

#[test]
fn modules_use_only_what_the_table_allows() {
    let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path());
    assert!(sources.len() > 50, "the sources are found");
    let wrong = violations(&sources);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_has_no_cycle() {
    for (module, allowed) in closure() {
        assert!(!allowed.contains(&module), "{module} would use itself");
    }
}

#[test]
fn a_planted_import_is_found_in_every_notation() {
    for (file, text) in [
        ("pool.rs", "use crate::server::run;"),
        ("pool.rs", "use crate::{config, server as s};"),
        ("pool.rs", "use crate::{backend::{Backend, Lease}, exchange::{self, Refusal}};"),
        ("pool.rs", "use super::control::Control;"),
        ("pool/view.rs", "use super::super::control::Control;"),
        ("pool.rs", "fn f() { let c = '\"'; crate::http::serve() }"),
        ("pool.rs", "fn f<'a>(x: &'a crate::admin::Admin) {}"),
        ("pool.rs", "/* use */ pub(crate) use crate::probe::*; // crate::config"),
        ("pool.rs", "const X: &str = r#\"\"#; use crate::listen;"),
        ("pool.rs", "#[cfg(test)]\nmod tests { use crate::config::x; }\nuse crate::control;"),
        ("message/head.rs", "use crate::config::x;"),
        ("http/h1/head.rs", "use crate::access_log::Record;"),
        ("http/h1/head.rs", "use super::super::idle;"),
        ("main.rs", "fn main() { evenkeel::unheard_of::x() }"),
        ("unheard_of.rs", "fn f() {}"),
        ("pool.rs", "use crate::unheard_of::x;"),
    ] {
        assert_eq!(violations(&one(file, text)).len(), 1, "{file}: {text}");
    }
}

#[test]
fn allowed_and_foreign_imports_are_accepted() {
    for (file, text) in [
        ("pool.rs", "use crate::metrics::Metrics; use crate::pool::Plan; use crate::message::x;"),
        ("pool.rs", "// crate::server\n/* crate::server /* crate::http */ crate::server */"),
        ("pool.rs", "const X: &str = \"crate::server \\\" crate::server\"; const Y: &str = r##\"crate::server\"##;"),
        ("pool.rs", "#[cfg(test)]\nmod tests { use crate::server; fn f() { {} } }\n#[cfg(test)]\nuse crate::server;"),
        ("pool.rs", "#[cfg(test)]\nmod tests;\n"),
        ("cli/admin.rs", "use http::Uri; use super::status; use crate::cli::x;"),
        ("http/h1/head.rs", "use super::field; use crate::message::{self, limits}; use crate::http::h1::rewrite;"),
        ("config/toml.rs", "use crate::message::limits::Limits;"),
    ] {
        assert_eq!(violations(&one(file, text)), Vec::<String>::new(), "{file}: {text}");
    }
    let mut sources = one("pool.rs", "#[cfg(test)]\nmod tests;");
    sources.extend(one("pool/tests.rs", "use crate::server;"));
    assert_eq!(violations(&sources), Vec::<String>::new());
}

#[test]
fn architecture_md_shows_the_table() {
    let page = include_str!("../../docs/ARCHITECTURE.md");
    let (begin, end) = ("<!-- edges: begin -->\n", "<!-- edges: end -->");
    let shown = page.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(shown, _)| shown);
    assert_eq!(
        shown,
        Some(as_markdown().as_str()),
        "between these marks of docs/ARCHITECTURE.md belongs:\n{}",
        as_markdown()
    );
}

fn as_markdown() -> String {
    let list = |modules: &[&str]| match modules {
        [] => "–".to_owned(),
        _ => modules.iter().map(|module| format!("`{module}`")).collect::<Vec<_>>().join(", "),
    };
    let row = |(module, used): &(&str, &[&str])| format!("| `{module}` | {} |\n", list(used));
    let rows: String = MAY_USE.iter().map(row).collect();
    let lowest = list(LOWEST);
    format!(
        "| module | may use |\n|---|---|\n{rows}| every module | {lowest}: and of these, each the ones behind it |\n"
    )
}

type Sources = BTreeMap<PathBuf, String>;

fn one(file: &str, text: &str) -> Sources {
    Sources::from([(file.into(), text.to_owned())])
}

/// All Rust files below `root`, by their relative paths.
fn sources(root: &Path) -> Sources {
    let mut found = Sources::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a text");
                found.insert(path.strip_prefix(root).expect("below the root").to_owned(), text);
            }
        }
    }
    found
}

/// All modules that each module may use.
fn closure() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    let mut all: BTreeMap<_, BTreeSet<_>> =
        MAY_USE.iter().map(|(module, used)| (*module, used.iter().chain(LOWEST).copied().collect())).collect();
    for (place, lowest) in LOWEST.iter().enumerate() {
        all.insert(lowest, LOWEST[place + 1..].iter().copied().collect());
    }
    loop {
        let before = all.clone();
        for used in all.values_mut() {
            let indirect: Vec<_> = used.iter().filter_map(|module| before.get(module)).flatten().copied().collect();
            used.extend(indirect);
        }
        if all == before {
            return all;
        }
    }
}

fn violations(sources: &Sources) -> Vec<String> {
    let allowed = closure();
    let for_tests: BTreeSet<Vec<String>> =
        sources.iter().flat_map(|(file, text)| Reader::new(module(file), text).modules_for_tests()).collect();
    let mut found = Vec::new();
    for (file, text) in sources {
        let module = module(file);
        if module.is_empty() || for_tests.iter().any(|tests| module.starts_with(tests)) {
            continue;
        }
        let Some(user) = entry(&allowed, &module) else {
            found.push(format!("{}: the table of imports does not name its module", file.display()));
            continue;
        };
        let used: BTreeSet<_> = Reader::new(module, text).paths().into_iter().collect();
        for path in used.iter().filter(|path| !path.is_empty()) {
            match entry(&allowed, path) {
                Some(used) if used == user || allowed[user].contains(used) => {}
                other => {
                    let used = other.map_or_else(|| path.join("::"), str::to_owned);
                    found.push(format!("{}: {user} may not use {used}", file.display()));
                }
            }
        }
    }
    found.dedup();
    found
}

/// The entry of the table for a path: the longest that matches.
fn entry<'a>(table: &BTreeMap<&'a str, BTreeSet<&'a str>>, path: &[String]) -> Option<&'a str> {
    (1..=path.len())
        .rev()
        .find_map(|length| table.get_key_value(path[..length].join("::").as_str()))
        .map(|(key, _)| *key)
}

fn module(file: &Path) -> Vec<String> {
    let mut parts: Vec<_> = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let name = parts.pop().unwrap_or_default();
    match name.trim_end_matches(".rs") {
        "lib" => {}
        name => parts.push(name.to_owned()),
    }
    parts
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
}

/// Finds the paths in a module's text.
struct Reader {
    module: Vec<String>,
    tokens: Vec<Token>,
    /// Modules that exist only in tests.
    for_tests: Vec<Vec<String>>,
}

impl Reader {
    fn new(module: Vec<String>, text: &str) -> Self {
        let mut reader = Self { module, tokens: tokens(text), for_tests: Vec::new() };
        reader.leave_out_tests();
        reader
    }

    fn modules_for_tests(self) -> Vec<Vec<String>> {
        self.for_tests
    }

    /// Removes each item behind `#[cfg(test)]`: up to its end, or that of its block.
    fn leave_out_tests(&mut self) {
        let attribute = tokens("#[cfg(test)]");
        let mut at = 0;
        while at < self.tokens.len() {
            if !self.tokens[at..].starts_with(&attribute) {
                at += 1;
                continue;
            }
            let mut end = at + attribute.len();
            if let [Token::Word(word), Token::Word(name), Token::Mark(';'), ..] = &self.tokens[end..]
                && word == "mod"
            {
                self.for_tests.push([&self.module[..], std::slice::from_ref(name)].concat());
            }
            let mut depth = 0;
            let is_use = self.tokens.get(end) == Some(&Token::Word("use".to_owned()));
            while let Some(token) = self.tokens.get(end) {
                end += 1;
                match token {
                    Token::Mark('{') => depth += 1,
                    Token::Mark('}') => {
                        depth -= 1;
                        if depth == 0 && !is_use {
                            break;
                        }
                    }
                    Token::Mark(';') if depth == 0 => break,
                    _ => {}
                }
            }
            self.tokens.drain(at..end);
        }
    }

    /// Every path to a module of this crate, from its root.
    fn paths(&self) -> Vec<Vec<String>> {
        let mut paths = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let is_start = at == 0 || self.tokens[at - 1] != Token::Path;
            let root = match (&self.tokens[at], self.tokens.get(at + 1)) {
                (Token::Word(word), Some(Token::Path)) if is_start => self.root(word),
                _ => None,
            };
            at += 1;
            if let Some(root) = root {
                at = self.read(at + 1, root, &mut paths);
            }
        }
        paths
    }

    /// The beginning of a path, if it leads to a module of this crate.
    fn root(&self, word: &str) -> Option<Vec<String>> {
        match word {
            "crate" => Some(Vec::new()),
            "evenkeel" if self.module == ["main"] || self.module == ["signals"] => Some(Vec::new()),
            "self" => Some(self.module.clone()),
            "super" => Some(self.module.split_last()?.1.to_vec()),
            _ => None,
        }
    }

    /// Reads what follows `::` at `at`. Returns where it ends.
    fn read(&self, mut at: usize, path: Vec<String>, paths: &mut Vec<Vec<String>>) -> usize {
        match self.tokens.get(at) {
            Some(Token::Word(word)) => {
                let path = match word.as_str() {
                    "self" => path,
                    "super" => path.split_last().map(|(_, parent)| parent.to_vec()).unwrap_or_default(),
                    _ => [path, vec![word.clone()]].concat(),
                };
                match self.tokens.get(at + 1) {
                    Some(Token::Path) => self.read(at + 2, path, paths),
                    _ => {
                        paths.push(path);
                        at + 1
                    }
                }
            }
            Some(Token::Mark('{')) => {
                at += 1;
                loop {
                    match self.tokens.get(at) {
                        Some(Token::Mark('}')) => return at + 1,
                        Some(Token::Mark(',')) => at += 1,
                        // `as` and the name after it.
                        Some(Token::Word(word)) if word == "as" => at += 2,
                        Some(_) => at = self.read(at, path.clone(), paths),
                        None => return at,
                    }
                }
            }
            // All of it, or `<` of a path within code.
            _ => {
                paths.push(path);
                at + 1
            }
        }
    }
}

/// Words and symbols, without comments and quoted text.
fn tokens(text: &str) -> Vec<Token> {
    let text: Vec<char> = text.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut at = 0;
    let starts = |at: usize, what: &str| what.chars().enumerate().all(|(i, c)| text.get(at + i) == Some(&c));
    while let Some(&c) = text.get(at) {
        if starts(at, "//") {
            at += text[at..].iter().position(|&c| c == '\n').unwrap_or(text.len() - at);
        } else if starts(at, "/*") {
            let mut depth = 0;
            while at < text.len() {
                let step = match () {
                    () if starts(at, "/*") => (1, 2),
                    () if starts(at, "*/") => (-1, 2),
                    () => (0, 1),
                };
                depth += step.0;
                at += step.1;
                if depth == 0 {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&text[at..]) {
            let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
            at += text[at..].iter().position(|&c| c == '"').unwrap_or(0) + 1;
            while at < text.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
        } else if c == '"' {
            at += 1;
            while at < text.len() && text[at] != '"' {
                at += if text[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' {
            // A character, or a lifetime, which has no second quote.
            let is_escape = text.get(at + 1) == Some(&'\\');
            let end = if is_escape {
                text[at + 3..].iter().position(|&c| c == '\'').map(|more| at + 3 + more)
            } else {
                (text.get(at + 2) == Some(&'\'')).then_some(at + 2)
            };
            at = end.unwrap_or(at) + 1;
        } else if is_word(c) {
            let end = at + text[at..].iter().position(|&c| !is_word(c)).unwrap_or(text.len() - at);
            tokens.push(Token::Word(text[at..end].iter().collect()));
            at = end;
        } else if starts(at, "::") {
            tokens.push(Token::Path);
            at += 2;
        } else {
            if !c.is_whitespace() {
                tokens.push(Token::Mark(c));
            }
            at += 1;
        }
    }
    tokens
}

/// The number of `#` of a raw string that begins here; `None`: none begins.
fn raw_string(text: &[char]) -> Option<usize> {
    let behind_r = match text {
        ['r', rest @ ..] | ['b' | 'c', 'r', rest @ ..] => rest,
        _ => return None,
    };
    let hashes = behind_r.iter().take_while(|&&c| c == '#').count();
    (behind_r.get(hashes) == Some(&'"')).then_some(hashes)
}
