//! Lookup of fields, cookies and query arguments by nginx's rules for its variables.

use std::borrow::Cow;

use super::Presence;
use crate::message::ascii::trim;
use crate::message::name::Name;

/// A field name. As part of a variable it is lower-case with `_` for `-`, and matches fields with either.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FieldKey {
    /// `_` matches itself and `-`.
    key: Box<[u8]>,
}

impl FieldKey {
    /// From the name of a variable, without its prefix.
    pub fn of_variable(name: &str) -> Self {
        Self { key: name.to_ascii_lowercase().into_bytes().into() }
    }

    /// Exactly the field with this name, ignoring case, unless the name has a `_`.
    pub fn exact(name: &str) -> Self {
        Self::of_variable(name)
    }

    /// The name, with `-` and `_` treated alike, if the balancer knows it.
    pub fn name(&self) -> Name {
        let hyphened: Vec<u8> = self.key.iter().map(|&byte| if byte == b'_' { b'-' } else { byte }).collect();
        Name::of(&hyphened)
    }

    #[inline]
    pub fn fits(&self, name: &[u8]) -> bool {
        self.key.len() == name.len()
            && self
                .key
                .iter()
                .zip(name)
                .all(|(key, byte)| *key == byte.to_ascii_lowercase() || (*key == b'_' && *byte == b'-'))
    }

    pub(super) fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.key)
    }

    /// Appends the values of the fields with this name, joined with `, `, or with `; ` for cookies.
    pub fn write<'a>(&self, fields: impl IntoIterator<Item = (&'a [u8], &'a [u8])>, out: &mut Vec<u8>) -> Presence {
        let separator: &[u8] = if self.fits(b"cookie") { b"; " } else { b", " };
        let mut presence = Presence::Missing;
        for (_, value) in fields.into_iter().filter(|(name, _)| self.fits(name)) {
            if presence == Presence::Present {
                out.extend_from_slice(separator);
            }
            out.extend_from_slice(value);
            presence = Presence::Present;
        }
        presence
    }
}

/// The first argument `name` of a query, ignoring case, without decoding. An argument without `=` is empty; nginx
/// treats it as missing, so one with `=` takes precedence.
pub fn argument<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let mut bare = None;
    for argument in query.split(|&byte| byte == b'&') {
        let Some((start, rest)) = argument.split_at_checked(name.len()) else { continue };
        if !start.eq_ignore_ascii_case(name) {
            continue;
        }
        match rest {
            [b'=', value @ ..] => return Some(value),
            [] => bare = Some(rest),
            _ => {}
        }
    }
    bare
}

/// The first cookie `name`, ignoring case like nginx, in the values of all `Cookie` fields.
pub fn cookie<'a>(fields: impl IntoIterator<Item = &'a [u8]>, name: &[u8]) -> Option<&'a [u8]> {
    fields.into_iter().flat_map(|field| field.split(|&byte| byte == b';')).find_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        trim(&pair[..equals]).eq_ignore_ascii_case(name).then(|| trim(&pair[equals + 1..]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_name_are_joined() {
        let fields: [(&[u8], &[u8]); 5] =
            [(b"X-A", b"1"), (b"x_a", b"2"), (b"X-AB", b"3"), (b"Cookie", b"a=1"), (b"cookie", b"b=2")];
        let text = |key: FieldKey| {
            let mut out = Vec::new();
            let presence = key.write(fields, &mut out);
            (presence == Presence::Present).then(|| String::from_utf8(out).expect("ASCII"))
        };
        assert_eq!(text(FieldKey::of_variable("x_a")).as_deref(), Some("1, 2"));
        assert_eq!(text(FieldKey::exact("X-a")).as_deref(), Some("1"));
        assert_eq!(text(FieldKey::of_variable("cookie")).as_deref(), Some("a=1; b=2"));
        assert_eq!(text(FieldKey::of_variable("x")), None);
        assert_eq!(FieldKey::of_variable("content_type").name(), Name::ContentType);
    }

    #[test]
    fn the_first_argument_of_a_name_is_used_as_sent() {
        for (query, expected) in [
            ("a=1", Some("1")),
            ("A=1&a=2", Some("1")),
            ("b=0&a=%201+&a=2", Some("%201+")),
            ("a=", Some("")),
            ("a", Some("")),
            ("a&a=2", Some("2")),
            ("a=1=2", Some("1=2")),
            ("ab=1&ba=2", None),
            ("x=&a=", Some("")),
            ("%61=1", None),
            ("", None),
        ] {
            let found = argument(query.as_bytes(), b"a");
            assert_eq!(found, expected.map(str::as_bytes), "{query}");
        }
    }

    #[test]
    fn the_first_cookie_of_a_name_is_used() {
        for (fields, expected) in [
            (vec!["a=1; b=2"], Some("2")),
            (vec!["a=1", "B=3; b=2"], Some("3")),
            (vec!["a=b=1; b= 2 ; c=3"], Some("2")),
            (vec!["b"], None),
            (vec!["bb=1;ab=2;;=;"], None),
            (vec!["b=\"x\""], Some("\"x\"")),
            (vec![], None),
        ] {
            let found = cookie(fields.iter().map(|field| field.as_bytes()), b"b");
            assert_eq!(found, expected.map(str::as_bytes), "{fields:?}");
        }
    }
}
