use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text, Case::Sensitive).expect(text)
}

/// The groups, `-` for those that took no part; `None`: no match.
fn groups(text: &str, subject: &str) -> Option<Vec<String>> {
    let pattern = pattern(text);
    let captured = pattern.captures(subject.as_bytes());
    assert_eq!(captured.is_some(), pattern.is_match(subject.as_bytes()), "{text} on {subject}");
    let text = |index| captured?.text(index, subject.as_bytes()).map(|text| String::from_utf8_lossy(text).into_owned());
    captured?;
    Some((1..=pattern.groups()).map(|index| text(index).unwrap_or_else(|| "-".to_owned())).collect())
}

fn refusal(text: &str) -> String {
    match Pattern::parse(text, Case::Sensitive) {
        Ok(pattern) => panic!("{text} was taken as {}", pattern.translated()),
        Err(why) => why,
    }
}

#[test]
fn dot_files_match_except_in_one_folder() {
    for text in [r"/\.(?!well-known)", r"/\.(?!well-known).*", r"/\.(?!well-known\/)", r"(?i)/\.(?!well-known)"] {
        let pattern = pattern(text);
        for (path, expected) in [
            ("/.git/config", true),
            ("/a/.env", true),
            ("/.well-known/.git", true),
            ("/.well-knowx", true),
            ("/.well", true),
            ("/.", true),
            ("/.w", true),
            ("/.well-known/acme-challenge/x", false),
            ("/well-known", false),
            ("/", false),
            ("/a.b", false),
        ] {
            assert_eq!(pattern.is_match(path.as_bytes()), expected, "{text} on {path}");
        }
    }
    assert!(!pattern(r"/\.(?!well-known)").is_match(b"/.well-known"));
    assert!(pattern(r"/\.(?!well-known\/)").is_match(b"/.well-known"));
    assert!(!pattern(r"(?i)/\.(?!well-known)").is_match(b"/.Well-Known/x"));
}

#[test]
fn groups_of_look_ahead_match_pcre() {
    for (text, subject, expected) in [
        (r"^/(?!api/|static/)(.*)$", "/app/x", Some(vec!["app/x"])),
        (r"^/(?!api/|static/)(.*)$", "/api/x", None),
        (r"^/(?!api/|static/)(.*)$", "/api", Some(vec!["api"])),
        (r"^/(?!.*\.php$)(.+)", "/a.php5", Some(vec!["a.php5"])),
        (r"^/(?!.*\.php$)(.+)", "/a/b.php", None),
        (r"^(?!/admin)(?!/api)/([^/]+)", "/administrator", None),
        (r"^(?!/admin)(?!/api)/([^/]+)", "/x/y", Some(vec!["x"])),
        (r"/x/(?!ab|ac)(.*)$", "/x/ad", Some(vec!["ad"])),
        (r"/x/(?!ab|ac)(.*)$", "/x/a", Some(vec!["a"])),
        (r"/x/(?!ab|ac)(.*)$", "/x/acd", None),
        (r"(a|b)(?=/)", "xb/", Some(vec!["b"])),
        (r"(a|b)(?=/)", "xb", None),
        (r"^(?!((a)))(b)", "b", Some(vec!["-", "-", "b"])),
    ] {
        let expected = expected.map(|all: Vec<&str>| all.into_iter().map(str::to_owned).collect());
        assert_eq!(groups(text, subject), expected, "{text} on {subject}");
    }
}

/// In nginx, a rule that denies `^/admin/.*$` also denies `/admin/x%0a`.
#[test]
fn a_dollar_matches_before_a_final_line_break_and_a_dot_matches_none() {
    for (text, subject, expected) in [
        (r"\.php$", "/x.php\n", true),
        (r"\.php$", "/x.php", true),
        (r"\.php$", "/x.php\n\n", false),
        (r"\.php\Z", "/x.php\n", true),
        (r"\.php\z", "/x.php\n", false),
        (r"^/(a|b)$", "/b\n", true),
        (r"^/admin/.*$", "/admin/x\n", true),
        (r"^/admin/.*$", "/admin/x\ny", false),
        (r"^/[^/]*$", "/a\nb", true),
        (r"^/x(?:\.css$|/)", "/x.css\n", true),
        (r"^/(?!.*\.php$)", "/x.php\n", false),
        (r"/\.(?!well-known$)", "/.well-known\n", false),
        (r"/\.(?!well-known$)", "/.well-known\nx", true),
        (r"/\.(?!well-known$)", "/.well-known\n\n", true),
        (r"/x/(?!ab$).*$", "/x/ab\n", false),
        (r"/x/(?!ab$).*$", "/x/abc\n", true),
        (r"/x/(?!ab)$", "/x/\n", true),
        (r"/a(?=/$)", "/a/\n", true),
        (r"^$", "\n", true),
    ] {
        let pattern = pattern(text);
        assert_eq!(pattern.is_match(subject.as_bytes()), expected, "{text} on {subject:?}");
        assert_eq!(pattern.captures(subject.as_bytes()).is_some(), expected, "{text} on {subject:?}");
    }
    for (text, subject, expected) in [
        (r"^/(.*)$", "/a\n", Some(vec!["a"])),
        (r"^/(.*$)", "/a\n", Some(vec!["a"])),
        (r"^/((?:b|(a))$)", "/a\n", Some(vec!["a", "a"])),
        (r"^/((b$)|(a$))", "/a\n", Some(vec!["a", "-", "a"])),
        (r"^/([^/]*)$", "/a\n", Some(vec!["a\n"])),
        (r"^/([^/]*?)$", "/a\n", Some(vec!["a"])),
        (r"/x/(?!ab|ac)(.*)$", "/x/a\n", Some(vec!["a"])),
        (r"/x/(?!ab|ac)(.*)$", "/x/\n", Some(vec![""])),
        (r"/x/(?!ab|ac)((?s).*)$", "/x/a\n", Some(vec!["a\n"])),
    ] {
        let expected = expected.map(|all: Vec<&str>| all.into_iter().map(str::to_owned).collect());
        assert_eq!(groups(text, subject), expected, "{text} on {subject:?}");
    }
    assert!(refusal(r"/x(?!\n)$").contains("look-ahead"));
}

#[test]
fn the_dialect_of_pcre_is_parsed() {
    for (text, subject, expected) in [
        (r"^a\hb$", "a\tb", true),
        (r"^a{$", "a{", true),
        (r"^a{,b}$", "a{,b}", true),
        (r"^{}$", "{}", true),
        (r"^a]}$", "a]}", true),
        (r"^\Qa.b\E+$", "a.bb", true),
        (r"^\Qa.b\E+$", "axb", false),
        (r"^[]a]+$", "a]", true),
        (r"^[[a&&b~~]+$", "[&~", true),
        (r"^[\w.-]+$", "a_-.", true),
        (r"^[[:alpha:]]+$", "aB", true),
        (r"^\x2f\x{61}\057$", "/a/", true),
        (r"(?i)^/A(?-i)b$", "/ab", true),
        (r"(?i)^/A(?-i)b$", "/aB", false),
        (r"(?i)^[^a]$", "A", false),
        (r"(?x) ^ a b # text", "ab", true),
        (r"^a(?#text)b$", "ab", true),
        (r"^\<\/\_$", "</_", true),
        (r"^ü$", "ü", true),
        (r"^(?:ü)+$", "üü", true),
        (r"^\d+$", "٣", false),
        (r"(?s)^.{2}$", "ü", true),
    ] {
        assert_eq!(pattern(text).is_match(subject.as_bytes()), expected, "{text} on {subject}");
    }
    assert_eq!(groups(r"^/(?<a>\d+)/(?P<b>x)?(?'c'y)", "/12/y"), Some(vec!["12".into(), "-".into(), "y".into()]));
    let named = pattern(r"^/(?<a>\d+)/(?P<b>x)");
    assert_eq!((named.group("a"), named.group("b"), named.group("c"), named.groups()), (Some(1), Some(2), None, 2));
}

#[test]
fn patterns_that_need_backtracking_are_refused_with_a_reason() {
    for (text, why) in [
        (r"(a)\1", "back-reference"),
        (r"(?<n>a)\k<n>", "back-reference"),
        (r"(?<=a)b", "look-behind"),
        (r"(?<!a)b", "look-behind"),
        (r"(?>a+)b", "atomic"),
        (r"a++b", "possessive"),
        (r"(a|b(?R))", "recursion"),
        (r"(?(1)a|b)", "conditional"),
        (r"(*SKIP)a", "verbs"),
        (r"a\Kb", "\\K"),
        (r"\p{L}", "Unicode"),
        (r"[aü]", "one byte"),
        (r"ü+", "(?:…)"),
        (r"a{,3}", "{0,n}"),
        (r"(a", "without \")\""),
        (r"a)", "too many"),
        (r"[a", "without \"]\""),
        (r"a\", "at the end"),
        (r"*a", "nothing to repeat"),
        (r"a**", "quantifier after"),
        (r"(?m)^a", "(?m)"),
        (r"a(?!b)c+d", "look-ahead"),
        (r"((?!b).)*c", "look-ahead"),
        (r"(|a)+", "may be empty"),
        (r"(?<host>a)", "another name"),
        (r"(?<1a>a)", "not a valid group name"),
        (r"(?<a>a)(?<a>b)", "two groups"),
        (r"(((a{1000}){1000}){1000})", "bytes"),
    ] {
        let refusal = refusal(text);
        assert!(refusal.contains(why) && refusal.contains(text), "{text}: {refusal}");
    }
    assert!(refusal(&"a".repeat(MAX_TEXT_BYTES + 1)).contains("4096"));
    assert!(refusal(&"(".repeat(MAX_TEXT_BYTES)).contains("deep"));
    assert!(refusal(&"(a)".repeat(MAX_GROUPS + 1)).contains("groups"));
    assert!(refusal(r"ü(?<=a)b").contains("(character 2)"));
    assert!(refusal(&format!("a(?!{})", "b".repeat(2000))).contains("look-ahead"));
}

#[test]
fn plain_patterns_are_compared_as_text_with_the_same_result() {
    for (text, plain) in [
        (r"\.(css|js)$", true),
        (r"\.(?:css|jsx?)$", true),
        (r"^/x", true),
        (r"^/x/.*", true),
        (r"^/(a|b)/", true),
        (r"^/x$", true),
        (r"(?i)\.(PNG|jpe?g)$", true),
        (r".*", true),
        (r"(?i)x(?-i)y$", false),
        (r"^/x.*$", false),
        (r"/x", false),
        (r"^[ab]", false),
    ] {
        let pattern = pattern(text);
        assert_eq!(pattern.is_plain(), plain, "{text}");
        let regex = compile(pattern.translated()).expect("translated");
        for subject in [
            "", "/x", "/x/", "/X", "/xy", "/a/", "a.css", "a.jsx", "A.CSS", "a.pNg", "a.jpg", "xy", "XY", "/x\n",
            "/x/\n",
        ] {
            assert_eq!(pattern.is_match(subject.as_bytes()), regex.is_match(subject.as_bytes()), "{text} on {subject}");
        }
    }
}

#[test]
fn patterns_are_displayed_as_written() {
    let ignoring = Pattern::parse("^/x", Case::Insensitive).expect("valid");
    assert_eq!(serde_json::to_value(&ignoring).expect("a text"), "(?i)^/x");
    assert!(ignoring.is_match(b"/X") && ignoring != pattern("^/x"));
    assert_eq!(pattern("^/x"), pattern("^/x"));
}

#[test]
fn the_first_match_of_a_set_is_that_of_single_matching() {
    let texts = ["^/api/v[0-9]+/", r"/\.(?!well-known)", r"\.php$", "^/u/[0-9]+$", "x+y", "^/(a|b)$", "[0-9]{4}"];
    let parsed = |text: &&str| Pattern::parse(text, Case::Sensitive).expect("an expression");
    let each: Vec<(Pattern, usize)> = texts.iter().map(parsed).zip(0..).collect();
    let mut sets = Sets::default();
    let together = Patterns::new(each.clone(), &mut sets);
    assert!(together.any.is_some() && Patterns::new(&each[..4], &mut sets).any.is_none());
    Patterns::new(each.clone(), &mut sets);
    assert_eq!(sets.0.len(), 1, "the same again is the same set");
    for subject in [
        "",
        "/",
        "/api/v1/x",
        "/.git",
        "/.well-known/x",
        "/a.php",
        "/u/7",
        "/u/7/",
        "/xxy",
        "/b",
        "/bb",
        "/2024",
        "/.x.php",
    ] {
        for least in 0..=texts.len() {
            let expected = each.iter().find(|(one, index)| *index >= least && one.is_match(subject.as_bytes()));
            let found = together.find(subject.as_bytes(), |index| *index >= least);
            assert_eq!(found, expected.map(|(_, index)| index), "{subject} from {least} on");
        }
    }
}
