//! How large a head may be, and what becomes of field names that applications confuse.

use std::fmt;

use serde::Serialize;

/// The most bytes that a head may be allowed to have.
pub const MAX_HEAD_BYTES: usize = 1024 * 1024;

/// The most fields that a head may be allowed to have.
pub const MAX_FIELDS: usize = 4096;

/// Empty lines tolerated before a request line (RFC 9112 §2.2), bytes of them.
pub(crate) const BLANK_BYTES: usize = 8;

/// Limits on a head, checked once when they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub(crate) line_bytes: usize,
    pub(crate) head_bytes: usize,
    pub(crate) fields: usize,
    pub(crate) ambiguous: AmbiguousNames,
    pub(crate) non_ascii: NonAsciiTargets,
}

/// What to do with a request field whose name holds `_` or `.`.
///
/// CGI and its heirs read `X_Forwarded_For` and `X.Forwarded.For` as `X-Forwarded-For`: such a name passes our checks
/// as one field and reaches the application as another. Trailers with such names are left out in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AmbiguousNames {
    /// Leave the field out and serve the request, as nginx does.
    #[default]
    Drop,
    /// Pass the field on, unless it would be read as one that the balancer sets.
    Pass,
    /// Refuse the request with 400.
    Reject,
}

/// What to do with a request target that holds bytes above ASCII, which should have been escaped (RFC 3986 §2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NonAsciiTargets {
    /// Refuse the request with 400.
    #[default]
    Reject,
    /// Take them for themselves and pass the target on as it is, as nginx does.
    Pass,
}

impl Limits {
    /// Larger than any head can be that is passed on: for those that we have written ourselves.
    pub const LARGEST: Limits = Limits {
        line_bytes: MAX_HEAD_BYTES,
        head_bytes: 2 * MAX_HEAD_BYTES,
        fields: 2 * MAX_FIELDS,
        ambiguous: AmbiguousNames::Pass,
        non_ascii: NonAsciiTargets::Reject,
    };

    /// `line_bytes` bounds the first line without its line end (414), `head_bytes` the whole head from its first line
    /// to the empty one (431), `fields` their number (431).
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

    /// How many bytes a parser may want to see before it has a verdict: the least size a read buffer must grow to.
    pub fn buffer_bytes(&self) -> usize {
        BLANK_BYTES + self.head_bytes
    }

    /// The most bytes of a head.
    pub fn head_bytes(&self) -> usize {
        self.head_bytes
    }

    /// The most fields of a head.
    pub fn fields(&self) -> usize {
        self.fields
    }

    /// The same limits with another rule for ambiguous names.
    #[must_use]
    pub fn with_ambiguous_names(self, ambiguous: AmbiguousNames) -> Limits {
        Limits { ambiguous, ..self }
    }

    /// The same limits with another rule for targets with bytes above ASCII.
    #[must_use]
    pub fn with_non_ascii_targets(self, non_ascii: NonAsciiTargets) -> Limits {
        Limits { non_ascii, ..self }
    }
}

impl Default for Limits {
    /// 8 KiB for the first line, 32 KiB for the head, 100 fields: about what nginx takes by default.
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

/// Why limits make no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadLimits {
    /// The first line must be allowed 16 bytes, and fit the largest head.
    Line,
    /// The head must hold the longest first line, and at most [`MAX_HEAD_BYTES`].
    Head,
    /// There must be room for one field, and for at most [`MAX_FIELDS`].
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
