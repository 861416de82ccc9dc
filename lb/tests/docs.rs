//! The repository's pages are correct: their links lead somewhere, and the functions and types named in
//! `docs/ARCHITECTURE.md` are where it says.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Folders with files that are not ours.
const NOT_OURS: [&str; 4] = ["target", "demo-data", "secrets", "node_modules"];

#[test]
fn every_link_between_pages_has_a_target() {
    let (mut links, mut wrong) = (0, Vec::new());
    for page in files(&root(), "md") {
        let text = read(&page);
        for link in links_of(&text) {
            links += 1;
            if let Err(problem) = follow(&page, &text, link) {
                wrong.push(format!("{}: {link}: {problem}", page.display()));
            }
        }
    }
    assert!(links > 100, "only {links} links are found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn names_in_the_walkthroughs_exist_where_they_say() {
    let page = root().join("docs/ARCHITECTURE.md");
    let named = named_items(&read(&page));
    assert!(named.len() > 50, "only {} items are found", named.len());
    let is_wrong = |(item, file): &&(String, String)| !defines(&read(&page.with_file_name(file)), item);
    let wrong: Vec<_> = named.iter().filter(is_wrong).collect();
    assert!(wrong.is_empty(), "not there any more: {wrong:#?}");
}

#[test]
fn pingora_is_used_only_where_the_decision_allows() {
    let page = read(&root().join("docs/decisions/engine.md"));
    let listed: BTreeSet<_> =
        links_of(&page).filter_map(|link| link.strip_prefix("../../lb/src/")).map(str::to_owned).collect();
    let sources = root().join("lb/src");
    let names_it = |file: &PathBuf| {
        read(file).lines().any(|line| !line.trim_start().starts_with("//") && line.contains("pingora"))
    };
    let named = files(&sources, "rs")
        .into_iter()
        .filter(names_it)
        .map(|file| file.strip_prefix(&sources).expect("below it").to_string_lossy().into_owned());
    let mut found = 0;
    // The modules for Pingora servers use it throughout; lib.rs only lists modules.
    for file in named.filter(|file| !file.starts_with("pingora") && file != "lib.rs") {
        assert!(listed.contains(&file), "docs/decisions/engine.md does not say what of Pingora {file} uses");
        found += 1;
    }
    assert!(found > 0, "nobody uses Pingora any more: docs/decisions/engine.md should say so");
}

#[test]
fn the_module_map_lists_every_module() {
    let page = read(&root().join("docs/ARCHITECTURE.md"));
    let map = page.split_once("```\nlb/src/").and_then(|(_, rest)| rest.split_once("```")).expect("a map").0;
    let named: BTreeSet<_> = map.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let modules =
        include_str!("../src/lib.rs").lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
    let missing: Vec<_> = modules.map(|name| name.trim_end_matches(';')).filter(|name| !named.contains(name)).collect();
    assert!(missing.is_empty(), "the map of docs/ARCHITECTURE.md lacks {missing:?}");
}

#[test]
fn the_checks_of_the_documentation_find_planted_errors() {
    let page = root().join("README.md");
    for link in ["docs/none.md", "CONTRIBUTING.md#no-such-heading", "#no-such-heading", "docs/../../README.md"] {
        assert!(follow(&page, "# A heading", link).is_err(), "{link}");
    }
    for link in ["CONTRIBUTING.md", "docs/", "#a-heading-of-code-and-links", "https://example.com/none"] {
        assert_eq!(follow(&page, "## A *heading* of `code`, and [links](x.md)!", link), Ok(()), "{link}");
    }
    let text = "Go `a` and `B::b` in\n[`x.rs`](../x.rs), then (`C` in [`y.rs`](y.rs)); not in [`z.rs`](z.rs).";
    let owned = |(item, file): (&str, &str)| (item.to_owned(), file.to_owned());
    assert_eq!(named_items(text), [("B::b", "../x.rs"), ("a", "../x.rs"), ("C", "y.rs")].map(owned));
    let source = "pub struct Tall;\nimpl<T> Walk for Tall<T> {\n    pub fn walk(&self) {}\n}\nimpl Small {\n    fn run() {}\n}\n";
    for (item, is_there) in [
        ("Tall", true),
        ("Tal", false),
        ("walk", true),
        ("Tall::walk", true),
        ("Tall::run", false),
        ("Small::run", true),
    ] {
        assert_eq!(defines(source, item), is_there, "{item}");
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn read(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours = !name.starts_with('.') || name == ".github";
        if path.is_dir() && is_ours && !NOT_OURS.contains(&&*name) {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|here| here == extension) {
            found.push(path);
        }
    }
    found
}

/// The targets of a page's links, except those in code.
fn links_of(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    let prose = text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    prose.flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next()))
}

fn follow(page: &Path, text: &str, link: &str) -> Result<(), String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return Ok(());
    }
    let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let target = page.with_file_name(path);
    let is_outside = target.canonicalize().is_ok_and(|target| !target.starts_with(root()));
    if !path.is_empty() && (!target.exists() || is_outside) {
        return Err("there is no such file in the repository".to_owned());
    }
    let Some(heading) = heading else { return Ok(()) };
    let other = (!path.is_empty()).then(|| read(&target));
    let mut lines = other.as_deref().unwrap_or(text).lines().filter(|line| line.starts_with('#'));
    let found = lines.any(|line| anchor(line.trim_start_matches('#').trim()) == heading);
    if found { Ok(()) } else { Err("the page has no such heading".to_owned()) }
}

/// A heading in the form used by links: without markup and without link targets.
fn anchor(heading: &str) -> String {
    let mut words = String::new();
    for (place, part) in heading.split("](").enumerate() {
        words.push_str(if place == 0 { part } else { part.split_once(')').map_or("", |(_, rest)| rest) });
    }
    let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The items that a page names as "`item` in [`file`](link)", also several joined by "and" or commas: each item with
/// the link.
fn named_items(text: &str) -> Vec<(String, String)> {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut found = Vec::new();
    for (place, marks) in text.match_indices(" in [`") {
        let link = text[place + marks.len()..].split_once("](").and_then(|(_, rest)| rest.split_once(')'));
        let Some((link, _)) = link.filter(|(link, _)| link.ends_with(".rs")) else { continue };
        let mut before = &text[..place];
        while let Some((rest, item)) = before.strip_suffix('`').and_then(|rest| rest.rsplit_once('`')) {
            found.push((item.to_owned(), link.to_owned()));
            before = rest.strip_suffix(" and ").or_else(|| rest.strip_suffix(", ")).unwrap_or_default();
        }
    }
    found
}

/// Whether a Rust file defines `name`, or `Type::name` in an impl block of that type.
fn defines(source: &str, item: &str) -> bool {
    let words = |line: &str| -> Vec<String> {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let is_definition = |line: &str, name: &str| {
        let words = words(line);
        let kinds = ["fn", "struct", "enum", "trait", "const", "static", "type", "mod", "macro_rules"];
        words.windows(2).any(|pair| kinds.contains(&pair[0].as_str()) && pair[1] == name)
    };
    let Some((owner, name)) = item.split_once("::") else {
        return source.lines().any(|line| is_definition(line, item));
    };
    let mut is_inside = false;
    source.lines().any(|line| {
        let is_head = line.starts_with("impl") || is_definition(line, owner) && !line.starts_with(' ');
        if is_head {
            is_inside = words(line).iter().any(|word| word == owner);
        } else if line == "}" {
            is_inside = false;
        }
        is_inside && !is_head && is_definition(line, name)
    })
}
