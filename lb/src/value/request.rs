//! How fields, cookies and arguments of a query are looked up, as nginx does it for its variables.

use std::borrow::Cow;

use super::Presence;
use crate::message::ascii::trim;
use crate::message::name::Name;

/// A field's name. As part of a variable it is lower-case with `_` for `-`, and stands for fields with either.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldKey {
    /// `_` stands for itself and for `-`.
    key: Box<[u8]>,
}

impl FieldKey {
    /// From the variable's name, without its prefix.
    pub fn of_variable(name: &str) -> Self {
        Self { key: name.to_ascii_lowercase().into_bytes().into() }
    }

    /// Exactly this field, in whatever case.
    pub fn exact(name: &str) -> Self {
        Self::of_variable(name)
    }

    /// The name without regard to `-` and `_`, if the balancer knows it.
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

    /// Appends the values of the fields of this name, several joined with `, `, or with `; ` if they are cookies.
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

/// The first argument `name` of a query, in whatever case, as it was sent: not decoded. Without `=` it is empty; nginx
/// takes such a one for missing, so one with `=` goes first.
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

/// The first cookie `name`, in whatever case as in nginx, of the values of all `Cookie` fields.
pub fn cookie<'a>(fields: impl IntoIterator<Item = &'a [u8]>, name: &[u8]) -> Option<&'a [u8]> {
    fields.into_iter().flat_map(|field| field.split(|&byte| byte == b';')).find_map(|pair| {
        let equals = pair.iter().position(|&byte| byte == b'=')?;
        trim(&pair[..equals]).eq_ignore_ascii_case(name).then(|| trim(&pair[equals + 1..]))
    })
}
