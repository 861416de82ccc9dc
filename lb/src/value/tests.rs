use super::pattern::Case;
use super::table::{At, Percent, TableId, Written, WrittenCases, names_at_start, names_below};
use super::*;

/// Facts of a test: texts by variable name.
pub(super) struct TestFacts {
    facts: Vec<(String, Vec<u8>)>,
    tables: Tables,
}

impl TestFacts {
    pub(super) fn new(facts: &[(&str, &str)]) -> Self {
        Self::with_tables(facts, Tables::default())
    }

    pub(super) fn with_tables(facts: &[(&str, &str)], tables: Tables) -> Self {
        let facts = facts.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        Self { facts, tables }
    }
}

impl Facts for TestFacts {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        if let Variable::Table(id) = variable {
            return self.tables.write(*id, self, out);
        }
        match self.facts.iter().find(|(name, _)| *name == variable.to_string()) {
            Some((_, text)) => {
                out.extend_from_slice(text);
                Presence::Present
            }
            None => Presence::Missing,
        }
    }
}

fn written(text: &str, facts: &TestFacts) -> String {
    let scope = Scope { tables: &facts.tables, ..Scope::new(Phase::End) };
    let value = Value::parse(text, &scope).expect(text);
    let (mut out, mut scratch) = (Vec::new(), b"before".to_vec());
    let presence = value.write(facts, &mut out);
    let read = value.read(facts, &mut scratch);
    assert_eq!(read, (presence == Presence::Present).then_some(&out[..]), "{text}");
    String::from_utf8(out).expect("a text")
}

#[test]
fn variables_are_replaced_and_dollars_doubled() {
    let facts = TestFacts::new(&[("$host", "a.example"), ("$uri", "/x"), ("${arg_a-b}", "c")]);
    for (text, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("https://$host$uri", "https://a.example/x"),
        ("${host}s", "a.examples"),
        ("$$host $$", "$host $"),
        ("[$http_x]", "[]"),
        ("${arg_a-b}", "c"),
    ] {
        assert_eq!(written(text, &facts), expected, "{text}");
    }
    let constant = Value::constant("5 $");
    assert_eq!((constant.as_constant(), constant.text()), (Some(&b"5 $"[..]), "5 $$"));
    assert_eq!(Value::parse(constant.text(), &Scope::new(Phase::Head)), Ok(constant));
}

#[test]
fn every_variable_is_found_by_the_name_that_it_is_written_with() {
    let others = ["http_x_y", "upstream_http_x", "sent_http_x", "cookie_a", "arg_b", "cookie_a.b", "arg_b c"];
    for name in variable::FIXED.iter().map(|(name, ..)| *name).chain(others) {
        let braces = Value::parse(&format!("${{{name}}}"), &Scope::new(Phase::End)).expect(name);
        let variable = braces.as_variable().expect(name);
        let text = variable.to_string();
        assert_eq!(Value::parse(&text, &Scope::new(Phase::End)).expect(name).as_variable(), Some(variable), "{text}");
    }
}

#[test]
fn malformed_values_are_refused_with_the_fix() {
    let regex = Pattern::parse("^/(a)(?<n>b)", Case::Sensitive).expect("valid");
    let route = Scope { route: Some(&regex), ..Scope::new(Phase::Route) };
    for (text, why) in [
        ("a $", "$$"),
        ("a $-", "$$"),
        ("${host", "${name}"),
        ("${}", "no variable $;"),
        ("$Host", "write $host"),
        ("$hots", "did you mean $host"),
        ("$query_string", "write $args"),
        ("$request", "write $request_method $request_uri"),
        ("$http_", "$http_NAME"),
        ("$nonsense_of_mine", "[values]"),
        ("$3", "2 groups, $1 to $2"),
        ("$0", "2 groups"),
        ("$m", "no variable"),
        ("$status", "only once the head of the response is there"),
        ("$body_bytes_sent", "only when the response has ended"),
    ] {
        let refusal = Value::parse(text, &route).expect_err(text);
        assert!(refusal.contains(why), "{text}: {refusal}");
    }
    let head = Value::parse("$1", &Scope { route: Some(&regex), ..Scope::new(Phase::Head) }).expect_err("too early");
    assert!(head.contains("only once the route is chosen"), "{head}");
    let none = Value::parse("$1", &Scope::new(Phase::End)).expect_err("no groups");
    assert!(none.contains("there is none here"), "{none}");
}

#[test]
fn groups_belong_to_the_innermost_expression() {
    let of = |text| Pattern::parse(text, Case::Sensitive).expect(text);
    let (host, route, rewrite) = (of("^(?<a>x)(?<h>y)$"), of("^/(?<a>x)(?<r>y)$"), of("^/(?<w>x)$"));
    let scope = Scope { host: Some(&host), route: Some(&route), rewrite: Some(&rewrite), ..Scope::new(Phase::Route) };
    let group = |text: &str| match Value::parse(text, &scope).expect(text).as_variable() {
        Some(Variable::Group { of, index }) => (*of, *index),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(group("$1"), (GroupOf::Rewrite, 1));
    assert_eq!(group("$w"), (GroupOf::Rewrite, 1));
    assert_eq!(group("$a"), (GroupOf::Route, 1));
    assert_eq!(group("$r"), (GroupOf::Route, 2));
    assert_eq!(group("$h"), (GroupOf::Host, 2));
    // One digit, as in nginx.
    let scope = Scope { rewrite: None, ..scope };
    let value = Value::parse("$12", &scope).expect("valid");
    assert_eq!(value.parts().count(), 2);
    assert!(
        Value::parse("$2", &Scope { rewrite: Some(&rewrite), ..scope })
            .expect_err("not the route's")
            .contains("one group")
    );
}

fn map(name: &str, from: &str, cases: &[(&str, &str)], default: Option<&str>) -> Written {
    let cases = cases.iter().map(|(case, value)| ((*case).to_owned(), (*value).to_owned())).collect();
    let cases = WrittenCases::Map { cases, hostnames: false };
    Written { name: name.to_owned(), from: from.to_owned(), cases, default: default.map(str::to_owned) }
}

#[test]
fn maps_match_texts_before_expressions_in_order() {
    let tables = Tables::read(&[
        map(
            "m",
            "$arg_x",
            &[("~b", "1"), ("a", "2"), ("~*^C(.)", "3 $1"), ("~c", "4"), ("", "none"), ("\\~t", "5")],
            Some("d$host"),
        ),
        map("of_m", "$m", &[("2", "two")], None),
    ])
    .expect("valid");
    for (x, expected) in [
        (Some("a"), "2"),
        (Some("A"), "2"),
        (Some("ab"), "1"),
        (Some("cd"), "3 d"),
        (Some("Cc"), "3 c"),
        (Some("xc"), "4"),
        (Some("B"), "da.example"),
        (Some("~T"), "5"),
        (Some(""), "none"),
        (None, "none"),
    ] {
        let mut facts = vec![("$host", "a.example")];
        facts.extend(x.map(|x| ("$arg_x", x)));
        let facts = TestFacts::with_tables(&facts, tables.clone());
        assert_eq!(written("$m", &facts), expected, "{x:?}");
        assert_eq!(written("$of_m", &facts), if expected == "2" { "two" } else { "" }, "{x:?}");
    }
}

#[test]
fn host_wildcards_match_only_where_enabled() {
    let cases = [
        ("*.a.example", "1"),
        ("*.example", "2"),
        (".b.example", "3"),
        ("www.*", "4"),
        ("www.a.*", "5"),
        ("a.example", "6"),
    ];
    let mut written_map = map("m", "$http_x", &cases, Some("d"));
    let lookup = |written_map: &Written, host: &str| {
        let tables = Tables::read(std::slice::from_ref(written_map)).expect("valid");
        written("$m", &TestFacts::with_tables(&[("$http_x", host)], tables))
    };
    assert_eq!(lookup(&written_map, "x.a.example"), "d");
    assert_eq!(lookup(&written_map, "*.A.example"), "1");
    let WrittenCases::Map { hostnames, .. } = &mut written_map.cases else { panic!("a map") };
    *hostnames = true;
    for (host, expected) in [
        ("a.example", "6"),
        ("A.Example.", "6"),
        ("x.a.example", "1"),
        ("x.y.a.example", "1"),
        ("xa.example", "2"),
        ("b.example", "3"),
        ("x.b.example", "3"),
        ("www.c.test", "4"),
        ("www.a.test", "5"),
        ("www.example", "2"),
        ("www.", "d"),
        ("www", "d"),
        (".example", "2"),
        ("example", "d"),
        ("", "d"),
    ] {
        assert_eq!(lookup(&written_map, host), expected, "{host}");
    }
}

/// Each name that is looked up is hashed: the cost for a value with many dots must not be quadratic.
#[test]
fn long_values_are_looked_up_by_names_no_longer_than_the_tables() {
    let long = "a.".repeat(20_000);
    let bytes = |names: &mut dyn Iterator<Item = &[u8]>| names.map(<[u8]>::len).sum::<usize>();
    let key = long.as_bytes();
    assert_eq!(bytes(&mut names_below(key, 5)), 4 + 2);
    assert_eq!(bytes(&mut names_at_start(key, 5)), 5 + 3 + 1);

    let cases = [("*.b.example", "1"), ("www.*", "2"), ("www.a.*", "3")];
    let mut written_map = map("m", "$http_x", &cases, Some("d"));
    let WrittenCases::Map { hostnames, .. } = &mut written_map.cases else { panic!("a map") };
    *hostnames = true;
    let tables = Tables::read(&[written_map]).expect("valid");
    for (host, expected) in [
        (format!("{long}b.example"), "1"),
        (format!("{long}example"), "d"),
        (format!("www.{long}"), "3"),
        (format!("www.b.{long}"), "2"),
    ] {
        assert_eq!(written("$m", &TestFacts::with_tables(&[("$http_x", &host)], tables.clone())), expected);
    }
}

#[test]
fn the_longest_network_wins() {
    let networks = [("10.0.0.0/8", "1"), ("10.1.0.0/16", "2"), ("0.0.0.0/0", "3"), ("fd00::/8", "4"), ("::1/128", "5")];
    let networks = networks.map(|(network, value)| (network.parse().expect(network), value.to_owned())).into();
    let table = Written {
        name: "n".to_owned(),
        from: "$remote_addr".to_owned(),
        cases: WrittenCases::Networks(networks),
        default: Some("d".to_owned()),
    };
    let tables = Tables::read(&[table]).expect("valid");
    for (client, expected) in [
        ("10.2.0.1", "1"),
        ("10.1.0.1", "2"),
        ("192.0.2.1", "3"),
        ("::ffff:10.1.2.3", "2"),
        ("fd01::1", "4"),
        ("::1", "5"),
        ("::2", "d"),
        ("unix:", "d"),
        ("", "d"),
    ] {
        assert_eq!(
            written("$n", &TestFacts::with_tables(&[("$remote_addr", client)], tables.clone())),
            expected,
            "{client}"
        );
    }
}

#[test]
fn errors_in_tables_name_the_part() {
    let problems = |tables: &[Written]| {
        let problems = Tables::read(tables).expect_err("wrong");
        problems.into_iter().map(|problem| (problem.table.0, problem.at, problem.message)).collect::<Vec<_>>()
    };
    for (table, at, why) in [
        (map("1x", "$host", &[], None), At::Name, "no digit at the start"),
        (map("host", "$host", &[], None), At::Name, "another name"),
        (map("arg_x", "$host", &[], None), At::Name, "another name"),
        (map("x", "$hots", &[], None), At::From, "did you mean $host"),
        (map("x", "$host", &[], Some("$1")), At::Default, "there is none here"),
        (map("x", "$host", &[("a", "b"), ("A", "c")], None), At::Case(1), "listed already"),
        (map("x", "$host", &[("~(a", "b")], None), At::Case(0), "without \")\""),
        (map("x", "$host", &[("~(a)", "$2")], None), At::Case(0), "one group"),
        (map("x", "$x", &[], None), At::From, "circle"),
    ] {
        let found = problems(&[table]);
        assert!(matches!(&found[..], [(0, part, message)] if *part == at && message.contains(why)), "{found:?}");
    }
    let found = problems(&[map("x", "$y", &[], None), map("y", "$x", &[], None)]);
    assert!(found.iter().any(|(_, at, message)| *at == At::From && message.contains("circle")), "{found:?}");
    let chain: Vec<_> = (0..100).map(|at| map(&format!("t{at}"), &format!("$t{}", at + 1), &[], None)).collect();
    let chain = [chain, vec![map("t100", "$host", &[], None)]].concat();
    assert!(problems(&chain).iter().any(|(_, _, message)| message.contains("one for another")));
    let backwards: Vec<_> = chain.into_iter().rev().collect();
    assert!(problems(&backwards).iter().any(|(_, _, message)| message.contains("one for another")));
    for (percent, is_valid) in
        [(0.01, true), (100.0, true), (33.33, true), (0.0, false), (0.001, false), (100.01, false), (-1.0, false)]
    {
        assert_eq!(Percent::new(percent).is_ok(), is_valid, "{percent}");
    }
    assert!(Percent::new(f64::NAN).is_err());
    let share = |percent| (Percent::new(percent).expect("valid"), "x".to_owned());
    let shares = |shares| Written { cases: WrittenCases::Shares(shares), ..map("s", "$host", &[], None) };
    assert!(Tables::read(&[shares(vec![share(60.0), share(40.0)])]).is_ok());
    assert!(problems(&[shares(vec![share(60.0), share(40.01)])])[0].2.contains("more than 100 percent"));
}

#[test]
fn a_tables_phase_is_the_latest_of_its_parts() {
    let tables = Tables::read(&[
        map("early", "$host", &[], None),
        map("late", "$host", &[("a", "$status")], None),
        map("later", "$late", &[], None),
        map("always", "a", &[("a", "b")], Some("$host")),
    ])
    .expect("valid");
    let scope = Scope { tables: &tables, ..Scope::new(Phase::Head) };
    assert!(Value::parse("$early", &scope).is_ok());
    assert!(Value::parse("$late", &scope).is_err() && Value::parse("$later", &scope).is_err());
    assert_eq!(
        Value::parse("$later", &Scope { known: Phase::Answer, ..scope }).expect("known").phase(&tables),
        Phase::Answer
    );
    // It is the same for every request.
    assert_eq!(Value::parse("a$always", &scope).expect("valid").as_constant(), Some(&b"ab"[..]));
    assert_eq!(
        Value::parse("$late", &Scope { known: Phase::End, ..scope }).expect("valid").as_variable(),
        Some(&Variable::Table(TableId(1)))
    );
}

#[test]
fn every_variable_is_documented() {
    let docs = include_str!("../../../docs/values.md");
    let prefixed = ["http_NAME", "cookie_NAME", "arg_NAME", "upstream_http_NAME", "sent_http_NAME"];
    let rows: Vec<_> = docs.lines().filter_map(|line| line.strip_prefix("| `$")?.split_once("` | ")).collect();
    assert_eq!(rows.len(), variable::FIXED.len() + prefixed.len());
    for (name, _, phase) in variable::FIXED {
        let word = match phase {
            Phase::Head => "head",
            Phase::Route => "route",
            Phase::Answer => "answer",
            Phase::End => "ended",
        };
        let row = rows.iter().find(|(documented, _)| documented == name);
        assert!(row.is_some_and(|(_, row)| row.contains(&format!("| {word}"))), "${name}");
    }
}
