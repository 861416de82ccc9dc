use super::*;
use crate::value::Scope;
use crate::value::pattern::Case;
use crate::value::request::FieldKey;
use crate::value::tests::TestFacts;

fn test(of: Variable, is: Comparison, negated: bool) -> Test {
    Test { of: Value::variable(of), is, negated }
}

fn header(is: Comparison, negated: bool) -> Condition {
    let test = test(Variable::Field(FieldKey::exact("X-A")), is, negated);
    Condition { tests: vec![test], ..Condition::default() }
}

#[test]
fn an_empty_condition_holds() {
    assert!(Condition::default().is_empty() && Condition::default().holds(&TestFacts::new(&[])));
}

#[test]
fn missing_values_match_only_negated_tests() {
    let matches = |text| Comparison::Matches(Pattern::parse(text, Case::Sensitive).expect(text));
    let equal = |text| Comparison::Equal(Value::parse(text, &Scope::new(Phase::Head)).expect(text));
    for (is, value, expected) in [
        (Comparison::Present(Always), Some(""), true),
        (Comparison::Present(Always), None, false),
        (equal("on"), Some("on"), true),
        (equal("on"), Some("On"), false),
        (equal(""), None, false),
        (equal("$host"), Some("a.example"), true),
        (equal("$arg_none"), Some(""), false),
        (Comparison::OneOf(TextSet::new(["a", "b"])), Some("b"), true),
        (Comparison::OneOf(TextSet::new(["a", "b"])), Some("c"), false),
        (matches("^a"), Some("ab"), true),
        (matches("^$"), None, false),
    ] {
        let mut facts = vec![("$host", "a.example")];
        facts.extend(value.map(|value| ("${http_x-a}", value)));
        let facts = TestFacts::new(&facts);
        assert_eq!(header(is.clone(), false).holds(&facts), expected, "{is:?} {value:?}");
        assert_eq!(header(is.clone(), true).holds(&facts), !expected, "not {is:?} {value:?}");
    }
}

#[test]
fn all_of_a_condition_must_hold() {
    let networks = NetSet::new(["10.0.0.0/8".parse().expect("a network"), "::1/128".parse().expect("a network")]);
    let condition = Condition {
        methods: Some(MethodSet::new(["GET", "PURGE"]).expect("valid")),
        networks: Some(networks),
        ..header(Comparison::Present(Always), false)
    };
    for (method, client, has_field, expected) in [
        ("GET", "10.1.2.3", true, true),
        ("PURGE", "::ffff:10.0.0.1", true, true),
        ("GET", "::1", true, true),
        ("get", "10.1.2.3", true, false),
        ("HEAD", "10.1.2.3", true, false),
        ("GET", "11.0.0.1", true, false),
        ("GET", "unix:", true, false),
        ("GET", "10.1.2.3", false, false),
    ] {
        let mut facts = vec![("$request_method", method), ("$remote_addr", client)];
        facts.extend(has_field.then_some(("${http_x-a}", "")));
        assert_eq!(condition.holds(&TestFacts::new(&facts)), expected, "{method} {client} {has_field}");
    }
}

#[test]
fn invalid_methods_are_refused() {
    for (methods, why) in
        [(&["get"][..], "write \"GET\""), (&[""], "not a method"), (&["A B"], "not a method"), (&["A", "A"], "twice")]
    {
        let refusal = MethodSet::new(methods).expect_err("wrong");
        assert!(refusal.contains(why), "{methods:?}: {refusal}");
    }
}

#[test]
fn a_condition_is_displayed_as_written() {
    let condition = Condition {
        methods: Some(MethodSet::new(["GET"]).expect("valid")),
        networks: Some(NetSet::new(["10.0.0.0/8".parse().expect("a network")])),
        tests: vec![test(Variable::Cookie(b"a".as_slice().into()), Comparison::OneOf(TextSet::new(["x"])), true)],
    };
    let expected =
        r#"{"methods":["GET"],"networks":["10.0.0.0/8"],"tests":[{"of":"$cookie_a","one_of":["x"],"negated":true}]}"#;
    assert_eq!(serde_json::to_string(&condition).expect("JSON"), expected);
}
