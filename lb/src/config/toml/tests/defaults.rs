//! What `default.toml` says about each setting: its range or words, its default, and the directive of nginx.

use super::super::template::commented_setting;
use super::super::words::{NGINX_ABSENT, NGINX_DIRECTIVES, VALUES_INSTEAD, WORDS_OF_SECTIONS};
use super::*;

/// Directives and parameters of nginx that a setting names first and no problem does.
const ONLY_HERE: &[&str] = &["access_log", "rewrite", "server", "sticky"];

/// Where a setting's explanation ends and the directives begin.
const NGINX: &str = "; nginx: ";

/// A setting with the comment above it.
struct Explained {
    key: String,
    /// Its line in the file, from 0.
    line: usize,
    /// Off unless written.
    is_commented: bool,
    comment: String,
}

/// Every setting in a line of its own. Further examples of a setting have the comment of its first one as well.
fn explained() -> Vec<Explained> {
    let mut found: Vec<Explained> = Vec::new();
    let (mut section, mut comment) = (String::new(), String::new());
    for (line, text) in DEFAULT.lines().enumerate() {
        let setting = commented_setting(text).unwrap_or(text);
        if let Some(name) = setting.strip_prefix('[') {
            section = name.trim_start_matches('[').split(']').next().unwrap_or_default().to_owned();
        } else if let Some((name, _)) = setting.split_once(" = ").filter(|_| !setting.starts_with('#')) {
            let key = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
            let first = found.iter().find(|other| other.key == key).map(|other| other.comment.clone());
            let comment = [first.unwrap_or_default(), std::mem::take(&mut comment)].join(" ");
            found.push(Explained {
                key,
                line,
                is_commented: text.starts_with('#'),
                comment: comment.trim().to_owned(),
            });
        } else if let Some(prose) = setting.strip_prefix('#') {
            comment = format!("{comment} {}", prose.trim());
            continue;
        }
        comment.clear();
    }
    found
}

/// The range or the words that the reader wants of a value, as the file should have them.
fn wanted(text: &str, path: &str, value: &Spanned<DeValue<'_>>) -> Vec<String> {
    let wrong = match value.get_ref() {
        DeValue::Integer(_) | DeValue::Float(_) => "-1",
        DeValue::String(text) if text.ends_with("iB") => "-1",
        DeValue::String(text) if text.ends_with(['s', 'm', 'h']) && text.starts_with(|c: char| c.is_ascii_digit()) => {
            "\"9999999h\""
        }
        DeValue::String(_) => "\"no such word\"",
        _ => return Vec::new(),
    };
    let mut changed = text.to_owned();
    changed.replace_range(value.span(), wrong);
    let problems = read(&changed, Path::new("/etc/evenkeel.toml")).err().unwrap_or_default();
    let fix = problems.iter().find_map(|problem| problem.message.strip_prefix(&format!("{path} is {wrong}: write ")));
    let Some(fix) = fix else { return Vec::new() };
    if let Some(words) = fix.strip_prefix("one of ") {
        return words.split(", ").map(str::to_owned).collect();
    }
    let is_size = path.ends_with("_bytes");
    let range = ["a duration from ", "a whole number from ", "a size from ", "a number from "]
        .iter()
        .find_map(|begin| fix.strip_prefix(begin))
        .and_then(|range| range.split_once(" to "))
        .map(|(min, max)| {
            let max: String = max.chars().take_while(char::is_ascii_alphanumeric).collect();
            format!("{} to {}", size(min, is_size), size(&max, is_size))
        });
    let open = || Some(fix.strip_prefix("a whole number, ")?.to_owned());
    range.or_else(open).into_iter().collect()
}

/// A number of bytes with the unit that it is a multiple of.
fn size(number: &str, is_size: bool) -> String {
    match number.parse::<u64>() {
        Ok(bytes) if is_size && bytes > 0 && bytes % (1 << 20) == 0 => format!("{}MiB", bytes >> 20),
        Ok(bytes) if is_size && bytes > 0 && bytes % (1 << 10) == 0 => format!("{}KiB", bytes >> 10),
        _ => number.to_owned(),
    }
}

#[test]
fn each_setting_says_what_may_be_written_and_its_default() {
    let explained = explained();
    let text = with_examples();
    let table = DeTable::parse(&text).expect("valid");
    let mut values = Vec::new();
    leaves(table.get_ref(), "", &mut values);
    let mut count = 0;
    for (path, value) in values {
        let line = text[..value.span().start].matches('\n').count();
        let setting = explained.iter().find(|setting| setting.line == line).expect("a setting");
        assert!(setting.comment.contains(NGINX), "line {}: {} lacks the directive of nginx", line + 1, setting.key);
        let has_default = setting.comment.contains("; default: ") || setting.comment.contains("Required: ");
        assert!(has_default || !setting.is_commented, "line {}: {} lacks its default", line + 1, setting.key);
        for wanted in wanted(&text, &path, value) {
            assert!(setting.comment.contains(&wanted), "line {}: {path} lacks {wanted}: {}", line + 1, setting.comment);
            count += 1;
        }
    }
    assert!(count > 100, "{count}");
}

#[test]
fn each_setting_names_the_directives_that_problems_lead_from() {
    let explained = explained();
    let is_below = |key: &str, table: &str| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'));
    // A table is in one line, or it is a section.
    let of = |key: &str| {
        let line = explained.iter().find(|setting| setting.key == key || is_below(key, &setting.key));
        assert!(line.is_some() || explained.iter().any(|setting| is_below(&setting.key, key)), "{key} has no line");
        line
    };
    let words = |setting: &Explained| -> Vec<String> {
        let directives = setting.comment.split_once(NGINX).map_or("", |(_, directives)| directives);
        directives.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map(str::to_owned).collect()
    };
    for (directive, section, keys) in NGINX_DIRECTIVES {
        for key in *keys {
            let Some(setting) = of(&format!("{section}.{key}")) else { continue };
            assert!(words(setting).iter().any(|word| word == directive), "{} lacks {directive}", setting.key);
        }
    }
    let is_known = |word: &str, key: &str| {
        key.rsplit('.').next() == Some(word)
            || NGINX_DIRECTIVES.iter().any(|(directive, ..)| *directive == word)
            || NGINX_ABSENT.iter().any(|(directive, _)| *directive == word)
            || VALUES_INSTEAD.iter().any(|(other, _)| *other == word)
            || WORDS_OF_SECTIONS.iter().any(|(_, other, _)| *other == word)
            || ONLY_HERE.contains(&word)
    };
    for setting in &explained {
        let first = words(setting).swap_remove(0);
        assert!(first == "none" || is_known(&first, &setting.key), "{}: {first}", setting.key);
    }
}
