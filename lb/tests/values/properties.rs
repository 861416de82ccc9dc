//! What holds for all values and expressions, whatever an operator writes and a client sends. Also used by the fuzz
//! target `value`.

use evenkeel::value::encode::Escape;
use evenkeel::value::pattern::{Case, Pattern};
use evenkeel::value::table::Tables;
use evenkeel::value::variable::Variable;
use evenkeel::value::{Facts, Phase, Presence, Scope, Value};

/// Text and data, separated by the first line break.
#[allow(dead_code, reason = "only the fuzz target has them in one")]
pub fn both_hold(input: &[u8]) {
    let end = input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len());
    let Ok(text) = std::str::from_utf8(&input[..end]) else { return };
    let data = input.get(end + 1..).unwrap_or_default();
    value_holds(text, data);
    pattern_holds(text, data);
}

/// A client that sends `data` wherever it has a choice.
struct Client<'a>(&'a [u8]);

impl Facts for Client<'_> {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        match variable {
            Variable::Host | Variable::ServerName | Variable::Hostname => out.extend_from_slice(b"host.example"),
            Variable::Scheme => out.extend_from_slice(b"https"),
            Variable::IsArgs => out.extend_from_slice(if self.0.is_empty() { b"" } else { b"?" }),
            Variable::ServerPort => out.extend_from_slice(b"443"),
            Variable::Field(key) if key.fits(b"host") => out.extend_from_slice(b"host.example:443"),
            _ => out.extend_from_slice(self.0),
        }
        Presence::Present
    }
}

/// A client without a host, for a site without a name.
struct Nameless<'a>(Client<'a>);

impl Facts for Nameless<'_> {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        match variable {
            Variable::Host | Variable::ServerName | Variable::Hostname => Presence::Missing,
            Variable::Field(key) if key.fits(b"host") => Presence::Missing,
            _ => self.0.write(variable, out),
        }
    }
}

pub fn value_holds(text: &str, data: &[u8]) {
    let route = Pattern::parse("^/(.*)(?<n>x)$", Case::Sensitive).expect("valid");
    let scope = Scope { route: Some(&route), ..Scope::new(Phase::End) };
    let Ok(value) = Value::parse(text, &scope) else { return };
    let again = Value::parse(value.text(), &scope).expect("its own text");
    assert_eq!(again, value);

    let client = Client(data);
    let written = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut out = b"before".to_vec();
        write(&mut out);
        out.strip_prefix(b"before").expect("what was there stays").to_vec()
    };
    let field = written(&|out| _ = value.write_field(&client, out));
    assert!(field.iter().all(|&byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f)), "{field:?}");

    let is_visible = |text: &[u8]| text.iter().all(u8::is_ascii_graphic);
    let target = written(&|out| _ = value.write_target(&client, out));
    assert!(target.is_empty() || (target[0] == b'/' && is_visible(&target) && !target.contains(&b'#')), "{target:?}");

    let location = written(&|out| _ = value.write_location(&client, out));
    assert!(is_visible(&location) && !location.contains(&b'\\'), "{location:?}");
    assert!(!location.starts_with(b"//"), "{location:?}");
    for location in [&location, &written(&|out| _ = value.write_location(&Nameless(Client(data)), out))] {
        let host = authority(location);
        assert!(host.is_none_or(|host| !host.is_empty()), "{}", String::from_utf8_lossy(location));
    }
    if value.check_location(&Tables::default()).is_ok() {
        // Whatever the client sends, the redirect leads to the same host, or to one below the same domain.
        let of_nobody = written(&|out| _ = value.write_location(&Client(b""), out));
        let (host, of_nobody) = (authority(&location), authority(&of_nobody));
        let is_same = host == of_nobody || host.zip(of_nobody).is_some_and(|(a, b)| is_below_one_domain(&a, &b));
        assert!(is_same, "{}", String::from_utf8_lossy(&location));
    }

    let line = written(&|out| value.write_log(Escape::Default, usize::MAX, &client, out));
    let constant = |byte| text.as_bytes().contains(&byte);
    assert!(constant(b'\n') || !line.contains(&b'\n'), "{line:?}");
    assert!(constant(b'\r') || !line.contains(&b'\r'), "{line:?}");
    assert!(constant(b'"') || !line.contains(&b'"'), "{line:?}");
    let line = written(&|out| value.write_log(Escape::Json, usize::MAX, &client, out));
    if !text.bytes().any(|byte| byte < b' ' || matches!(byte, b'"' | b'\\')) {
        let quoted = [b"\"", &line[..], b"\""].concat();
        assert!(serde_json::from_slice::<String>(&quoted).is_ok(), "{line:?}");
    }
}

/// The host to which a browser goes; `None`: the same one. Browsers read `\` as `/`.
fn authority(location: &[u8]) -> Option<Vec<u8>> {
    let colon = location.windows(3).position(|window| window == b"://")?;
    if location[..colon].iter().any(|byte| matches!(byte, b'/' | b'?' | b'#')) {
        return None;
    }
    let rest = &location[colon + 3..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?' | b'#' | b'\\')).unwrap_or(rest.len());
    Some(rest[..end].to_vec())
}

/// Whether two authorities have the same end, which is a domain name of at least two labels.
fn is_below_one_domain(a: &[u8], b: &[u8]) -> bool {
    let length = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let end = String::from_utf8_lossy(&a[a.len() - length..]).into_owned();
    let Some((_, domain)) = end.split(':').next().unwrap_or_default().split_once('.') else { return false };
    domain.split('.').filter(|label| !label.is_empty()).count() > 1
        && domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

pub fn pattern_holds(text: &str, data: &[u8]) {
    for case in [Case::Sensitive, Case::Insensitive] {
        let Ok(pattern) = Pattern::parse(text, case) else { continue };
        let translated = regex::bytes::RegexBuilder::new(pattern.translated())
            .unicode(false)
            .nest_limit(1000)
            .build()
            .expect("translated into what regex reads");
        let is_match = pattern.is_match(data);
        // Guards only restrict it, and nothing extends it.
        assert!(!is_match || translated.is_match(data), "{text}");
        assert!(!pattern.is_plain() || is_match == translated.is_match(data), "{text}");
        let groups = pattern.captures(data);
        assert_eq!(groups.is_some(), is_match, "{text}");
        for index in 1..=pattern.groups() {
            let span = groups.and_then(|groups| groups.span(index));
            assert!(span.is_none_or(|span| span.start <= span.end && span.end <= data.len()), "{text}");
        }
    }
}
