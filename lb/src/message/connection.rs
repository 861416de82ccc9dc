//! The Connection field: its options, and the fields it removes (RFC 9110 §7.6.1).

use super::ascii;
use super::name::{Name, NameSet};

/// The most options in one head. Real heads have two or three; each costs a walk over the fields.
pub const MAX_OPTIONS: u8 = 32;

/// Fields that a Connection option must not remove: those for client, target, credentials, content and framing. A
/// client that names them wants the backend to see a different request than the balancer did.
const PROTECTED: NameSet = NameSet::of(&[
    Name::Authorization,
    Name::CdnLoop,
    Name::ContentEncoding,
    Name::ContentLength,
    Name::ContentRange,
    Name::ContentType,
    Name::Cookie,
    Name::Date,
    Name::Expect,
    Name::Forwarded,
    Name::Host,
    Name::Location,
    Name::MaxForwards,
    Name::SetCookie,
    Name::TransferEncoding,
    Name::Via,
    Name::WwwAuthenticate,
    Name::XForwardedFor,
    Name::XForwardedHost,
    Name::XForwardedPort,
    Name::XForwardedPrefix,
    Name::XForwardedProto,
    Name::XForwardedServer,
    Name::XRealIp,
    Name::XRequestId,
]);

/// The connection options of one head, from all Connection lines together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// The option `close` is present.
    pub close: bool,
    /// The option `keep-alive` is present.
    pub keep_alive: bool,
    /// The option `upgrade` is present.
    pub upgrade: bool,
    /// An option names a field of this head.
    pub(crate) names_fields: bool,
    count: u8,
}

/// The error of a Connection field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadConnection {
    /// An option is not a token.
    Syntax,
    /// An option names a field that the sender must not remove.
    Protected,
    /// More than [`MAX_OPTIONS`].
    TooMany,
}

impl BadConnection {
    /// A fixed sentence that contains nothing from the peer.
    pub const fn reason(self) -> &'static str {
        match self {
            BadConnection::Syntax => "malformed Connection",
            BadConnection::Protected => "Connection names a field that must not be dropped",
            BadConnection::TooMany => "too many Connection options",
        }
    }
}

impl ConnectionOptions {
    /// Adds the options of one Connection line. Skips empty list elements (RFC 9110 §5.6.1.2).
    #[inline]
    pub(crate) fn read(&mut self, value: &[u8]) -> Result<(), BadConnection> {
        if ascii::same_token(value, b"keep-alive") {
            self.keep_alive = true;
            return self.counted();
        }
        ascii::elements(value).filter(|option| !option.is_empty()).try_for_each(|option| self.add(option))
    }

    /// Whether the sender keeps the connection open after this message (RFC 9112 §9.3).
    pub fn persists(&self, default: bool) -> bool {
        !self.close && (default || self.keep_alive)
    }

    fn add(&mut self, option: &[u8]) -> Result<(), BadConnection> {
        if !ascii::is_token(option) {
            return Err(BadConnection::Syntax);
        }
        if ascii::same_token(option, b"close") {
            self.close = true;
        } else if ascii::same_token(option, b"keep-alive") {
            self.keep_alive = true;
        } else if ascii::same_token(option, b"upgrade") {
            self.upgrade = true;
        } else if PROTECTED.has(Name::of(option)) {
            return Err(BadConnection::Protected);
        } else {
            self.names_fields = true;
        }
        self.counted()
    }

    fn counted(&mut self) -> Result<(), BadConnection> {
        self.count += 1;
        if self.count > MAX_OPTIONS { Err(BadConnection::TooMany) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<ConnectionOptions, BadConnection> {
        let mut options = ConnectionOptions::default();
        lines.iter().try_for_each(|line| options.read(line.as_bytes()))?;
        Ok(options)
    }

    #[test]
    fn options_of_all_lines_are_read_ignoring_case() {
        let options = read(&["Keep-Alive", ", ,\tUpgrade ,", "X-Mine"]).unwrap();
        assert!(options.keep_alive && options.upgrade && options.names_fields && !options.close);
        assert!(options.persists(false));
        assert!(!read(&["keep-alive, close"]).unwrap().persists(true));
        assert!(read(&[""]).unwrap().persists(true));
        assert!(!read(&[]).unwrap().persists(false));
    }

    #[test]
    fn options_must_be_tokens_and_bounded() {
        for bad in ["close;x", "keep alive", "\"close\"", "a=b"] {
            assert_eq!(read(&[bad]), Err(BadConnection::Syntax), "{bad}");
        }
        for name in ["Host", "content-length", "TRANSFER-ENCODING", "Cookie", "X-Forwarded-For", "authorization"] {
            assert_eq!(read(&["close", name]), Err(BadConnection::Protected), "{name}");
        }
        assert!(read(&["a,".repeat(32).as_str()]).is_ok());
        assert_eq!(read(&["a,".repeat(33).as_str()]), Err(BadConnection::TooMany));
        assert_eq!(read(&["keep-alive"; 300]), Err(BadConnection::TooMany));
    }
}
