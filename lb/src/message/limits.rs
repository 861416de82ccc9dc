//! Limits on the size of a head, and the treatment of field names that applications confuse.

use std::fmt;

use serde::Serialize;

/// The largest configurable head size in bytes.
pub const MAX_HEAD_BYTES: usize = 1024 * 1024;

/// The largest configurable number of fields.
pub const MAX_FIELDS: usize = 4096;

/// How many bytes of empty lines are tolerated before a request line (RFC 9112 §2.2).
pub(crate) const BLANK_BYTES: usize = 8;

/// Limits on a head, checked when created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub(crate) line_bytes: usize,
    pub(crate) head_bytes: usize,
    pub(crate) fields: usize,
    pub(crate) ambiguous: AmbiguousNames,
    pub(crate) non_ascii: NonAsciiTargets,
}

/// The treatment of request fields whose name contains `_` or `.`.
///
/// CGI and similar interfaces read `X_Forwarded_For` and `X.Forwarded.For` as `X-Forwarded-For`: such a name passes the
/// balancer's checks as one field and reaches the application as another. Trailers with such names are always dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AmbiguousNames {
    /// Drop the field and serve the request, as nginx does.
    #[default]
    Drop,
    /// Forward the field, unless applications would confuse it with one that the balancer sets.
    Pass,
    /// Reject the request with 400.
    Reject,
}

/// The treatment of request targets with non-ASCII bytes, which should have been escaped (RFC 3986 §2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NonAsciiTargets {
    /// Reject the request with 400.
    #[default]
    Reject,
    /// Accept the bytes and forward the target unchanged, as nginx does.
    Pass,
}

impl Limits {
    /// Larger than any head that is forwarded: for heads that the balancer has written itself.
    pub const LARGEST: Limits = Limits {
        line_bytes: MAX_HEAD_BYTES,
        head_bytes: 2 * MAX_HEAD_BYTES,
        fields: 2 * MAX_FIELDS,
        ambiguous: AmbiguousNames::Pass,
        non_ascii: NonAsciiTargets::Reject,
    };

    /// `line_bytes` limits the first line without its line end (414), `head_bytes` the whole head from its first line
    /// to the empty line (431), `fields` the number of fields (431).
    pub fn new(line_bytes: usize, head_bytes: usize, fields: usize) -> Result<Limits, BadLimits> {
        if !(16..=MAX_HEAD_BYTES - 4).contains(&line_bytes) {
            return Err(BadLimits::Line);
        }
        if !(line_bytes + 4..=MAX_HEAD_BYTES).contains(&head_bytes) {
            return Err(BadLimits::Head);
        }
        if !(1..=MAX_FIELDS).contains(&fields) {
            return Err(BadLimits::Fields);
        }
        Ok(Limits { line_bytes, head_bytes, fields, ..Limits::default() })
    }

    /// The maximum size of a head in bytes.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// The maximum number of fields.
    pub fn fields(&self) -> usize {
        self.fields
    }

    /// The same limits with a different treatment of ambiguous names.
    #[must_use]
    pub fn with_ambiguous_names(self, ambiguous: AmbiguousNames) -> Limits {
        Limits { ambiguous, ..self }
    }
}

impl Default for Limits {
    /// 8 KiB for the first line, 32 KiB for the head, 100 fields: similar to the defaults of nginx.
    fn default() -> Limits {
        Limits {
            line_bytes: 8 * 1024,
            head_bytes: 32 * 1024,
            fields: 100,
            ambiguous: AmbiguousNames::default(),
            non_ascii: NonAsciiTargets::default(),
        }
    }
}

/// Why limits are invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadLimits {
    /// The first line needs at least 16 bytes and must fit in the largest head.
    Line,
    /// The head must have room for the longest first line, and at most [`MAX_HEAD_BYTES`].
    Head,
    /// At least one field, and at most [`MAX_FIELDS`].
    Fields,
}

impl fmt::Display for BadLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadLimits::Line => write!(f, "the first line needs a limit from 16 to {} bytes", MAX_HEAD_BYTES - 4),
            BadLimits::Head => {
                write!(f, "the head needs a limit from 4 above the first line's to {MAX_HEAD_BYTES} bytes")
            }
            BadLimits::Fields => write!(f, "the number of fields needs a limit from 1 to {MAX_FIELDS}"),
        }
    }
}

impl std::error::Error for BadLimits {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_must_be_consistent_and_fit_the_offsets() {
        assert_eq!(Limits::new(8192, 32_768, 100), Ok(Limits::default()));
        assert_eq!(Limits::new(15, 4096, 100), Err(BadLimits::Line));
        assert_eq!(Limits::new(4096, 4096, 100), Err(BadLimits::Head));
        assert_eq!(Limits::new(4096, MAX_HEAD_BYTES + 1, 100), Err(BadLimits::Head));
        assert_eq!(Limits::new(4096, 8192, 0), Err(BadLimits::Fields));
        assert_eq!(Limits::new(4096, 8192, MAX_FIELDS + 1), Err(BadLimits::Fields));
    }
}
