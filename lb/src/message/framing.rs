//! How content is delimited (RFC 9112 §6).

/// How the content of a message is delimited, when received or when sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    /// No content, and no field says so.
    #[default]
    None,
    /// By Content-Length: this number of bytes.
    Length(u64),
    /// In chunks.
    Chunked,
    /// By the end of the connection; responses only.
    UntilClose,
}

impl Framing {
    /// Whether the content is known to be larger than `limit` bytes before any of it is read.
    pub fn exceeds(self, limit: u64) -> bool {
        matches!(self, Framing::Length(length) if length > limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_length_can_exceed_a_limit() {
        assert!(Framing::Length(11).exceeds(10) && !Framing::Length(10).exceeds(10));
        assert!(!Framing::Chunked.exceeds(0));
    }
}
