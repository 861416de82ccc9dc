use super::*;

struct Known1;

impl Facts for Known1 {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        match variable {
            Variable::Host => out.extend_from_slice(b"a.example"),
            Variable::Uri => out.extend_from_slice(b"/x"),
            _ => return Presence::Missing,
        }
        Presence::Present
    }
}

fn text(text: &str) -> String {
    let value = Value::parse(text, &Scope::new(Phase::Head)).expect(text);
    let mut out = Vec::new();
    value.write(&Known1, &mut out);
    String::from_utf8(out).expect("a text")
}

#[test]
fn variables_are_replaced_and_dollars_doubled() {
    for (written, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("https://$host$uri", "https://a.example/x"),
        ("${host}s", "a.examples"),
        ("$$host $$", "$host $"),
        ("[$http_x]", "[]"),
    ] {
        assert_eq!(text(written), expected, "{written}");
    }
}
