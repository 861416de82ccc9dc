//! Which requests are let in at all. What the transport's parser accepts is looked at once more here, where it takes
//! the meaning of the fields to tell.

use super::refusal::Refusal;

/// What a request says of itself.
#[derive(Debug, Clone, Copy, Default)]
pub struct Claims<'a> {
    pub method: &'a str,
    /// HTTP/1.1 or later.
    pub is_modern: bool,
    /// The authority of an absolute target, or HTTP/2's `:authority`.
    pub authority: Option<&'a str>,
    /// The first `Host` field, and how many there are.
    pub host: Option<&'a [u8]>,
    pub hosts: usize,
    pub content_length: Option<&'a [u8]>,
    pub content_lengths: usize,
    pub transfer_encodings: usize,
    /// The whole of the one `Transfer-Encoding` field.
    pub transfer_encoding: Option<&'a [u8]>,
    pub expect: Option<&'a [u8]>,
    /// As it came, path and query.
    pub target: &'a str,
}

impl<'a> Claims<'a> {
    /// The host that the request is for, port and all, or why it is refused.
    pub fn admit(&self, max_body: Option<u64>) -> Result<&'a str, Refusal> {
        if matches!(self.method, "CONNECT" | "TRACE") {
            return Err(Refusal::Method);
        }
        self.check_target()?;
        self.check_framing(max_body)?;
        if self.expect.is_some_and(|e| !e.eq_ignore_ascii_case(b"100-continue")) {
            return Err(Refusal::Expectation);
        }
        self.effective_host()
    }

    fn check_target(&self) -> Result<(), Refusal> {
        let is_clean = !self.target.bytes().any(|b| b <= b' ' || b == 0x7f || b == b'#');
        let is_form = self.target.starts_with('/') || (self.target == "*" && self.method == "OPTIONS");
        let hides_nul = self.target.split('?').next().is_some_and(|path| path.contains("%00"));
        if is_clean && is_form && !hides_nul { Ok(()) } else { Err(Refusal::Malformed) }
    }

    /// RFC 9112, 6.1 to 6.3: one length, understood by everybody the same way.
    fn check_framing(&self, max_body: Option<u64>) -> Result<(), Refusal> {
        if self.content_lengths > 1 || self.transfer_encodings > 1 {
            return Err(Refusal::Malformed);
        }
        if let Some(coding) = self.transfer_encoding {
            let is_chunked = coding.trim_ascii().eq_ignore_ascii_case(b"chunked");
            if !is_chunked || !self.is_modern || self.content_lengths > 0 {
                return Err(Refusal::Malformed);
            }
        }
        let Some(length) = self.content_length else { return Ok(()) };
        let digits = !length.is_empty() && length.iter().all(u8::is_ascii_digit);
        let length = std::str::from_utf8(length).ok().filter(|_| digits).and_then(|l| l.parse::<u64>().ok());
        match (length, max_body) {
            (None, _) => Err(Refusal::Malformed),
            (Some(length), Some(max)) if length > max => Err(Refusal::BodyTooLarge),
            _ => Ok(()),
        }
    }

    /// RFC 9112, 3.2: exactly one valid `Host` in HTTP/1.1, and an absolute target must not contradict it.
    fn effective_host(&self) -> Result<&'a str, Refusal> {
        if self.hosts > 1 || (self.hosts == 0 && self.is_modern && self.authority.is_none()) {
            return Err(Refusal::Malformed);
        }
        let field = self.host.map(|host| std::str::from_utf8(host).map_err(|_| Refusal::Malformed)).transpose()?;
        let host = match (self.authority, field) {
            (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => return Err(Refusal::Malformed),
            (Some(authority), _) => authority,
            (None, field) => field.unwrap_or_default(),
        };
        let is_valid = host.is_empty() || is_host(host);
        if is_valid { Ok(host) } else { Err(Refusal::Malformed) }
    }
}

/// A name or address with an optional port (RFC 3986, 3.2.2), without user information.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rfind(']') {
        Some(end) => text.split_at(end + 1),
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_port = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => {
            digits.bytes().all(|b| b.is_ascii_digit()) && (digits.is_empty() || digits.parse::<u16>().is_ok())
        }
    };
    let is_name =
        || !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+;=%".contains(&b));
    let is_address = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_name(),
    };
    is_port && is_address
}

/// A host without its port and its letters as they came.
pub fn without_port(host: &str) -> &str {
    match host.rfind(']') {
        Some(end) => &host[..=end],
        None => host.split(':').next().unwrap_or(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> Claims<'static> {
        Claims { method: "GET", is_modern: true, host: Some(b"a.example"), hosts: 1, target: "/", ..Claims::default() }
    }

    #[test]
    fn an_ordinary_request_is_admitted() {
        assert_eq!(claims().admit(None), Ok("a.example"));
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port_at_most() {
        for host in
            ["a", "a.example:80", "A_b.example", "127.0.0.1:8080", "[::1]", "[::1]:80", "a:", "xn--bcher-kva.example"]
        {
            assert!(is_host(host), "{host:?}");
        }
        for host in [
            "a b", "a/b", "a?b", "a#b", "a\\b", "a,b", "http://a", "u@a", "a:80:80", "a:x", "a:65536", "[::1", "[a]",
            ":80", "[::1]x",
        ] {
            assert!(!is_host(host), "{host:?}");
        }
    }

    #[test]
    fn a_modern_request_needs_exactly_one_host() {
        let none = Claims { host: None, hosts: 0, ..claims() };
        assert_eq!(none.admit(None), Err(Refusal::Malformed));
        assert_eq!(Claims { hosts: 2, ..claims() }.admit(None), Err(Refusal::Malformed));
        assert_eq!(Claims { is_modern: false, ..none }.admit(None), Ok(""));
        assert_eq!(Claims { authority: Some("b.example"), ..none }.admit(None), Ok("b.example"));
        assert_eq!(Claims { authority: Some("b.example"), ..claims() }.admit(None), Err(Refusal::Malformed));
        assert_eq!(Claims { authority: Some("A.EXAMPLE"), ..claims() }.admit(None), Ok("A.EXAMPLE"));
    }

    #[test]
    fn lengths_that_two_readers_could_take_differently_are_refused() {
        for length in [&b"+5"[..], b"-1", b"0x5", b"", b"5, 5", b"5 5", b"99999999999999999999"] {
            let claims = Claims { content_length: Some(length), content_lengths: 1, ..claims() };
            assert_eq!(claims.admit(None), Err(Refusal::Malformed), "{length:?}");
        }
        let chunked = Claims { transfer_encoding: Some(b"chunked"), transfer_encodings: 1, ..claims() };
        assert!(chunked.admit(None).is_ok());
        for wrong in [
            Claims { content_length: Some(b"5"), content_lengths: 2, ..claims() },
            Claims { content_length: Some(b"5"), content_lengths: 1, ..chunked },
            Claims { is_modern: false, ..chunked },
            Claims { transfer_encoding: Some(b"gzip, chunked"), ..chunked },
            Claims { transfer_encoding: Some(b"chunked, chunked"), ..chunked },
            Claims { transfer_encodings: 2, ..chunked },
        ] {
            assert_eq!(wrong.admit(None), Err(Refusal::Malformed), "{wrong:?}");
        }
    }

    #[test]
    fn a_body_announced_too_large_is_refused_before_it_comes() {
        let claims = Claims { content_length: Some(b"11"), content_lengths: 1, ..claims() };
        assert_eq!(claims.admit(Some(10)), Err(Refusal::BodyTooLarge));
        assert!(claims.admit(Some(11)).is_ok());
    }

    #[test]
    fn targets_and_methods_that_mean_mischief_are_refused() {
        for target in ["", "a", "*", "/a b", "/\x01", "/a#b", "/%00", "http:/x"] {
            assert_eq!(Claims { target, ..claims() }.admit(None), Err(Refusal::Malformed), "{target:?}");
        }
        assert!(Claims { target: "*", method: "OPTIONS", ..claims() }.admit(None).is_ok());
        assert!(Claims { target: "/?q=%00", ..claims() }.admit(None).is_ok());
        for method in ["CONNECT", "TRACE"] {
            assert_eq!(Claims { method, ..claims() }.admit(None), Err(Refusal::Method));
        }
        assert_eq!(Claims { expect: Some(b"200-maybe"), ..claims() }.admit(None), Err(Refusal::Expectation));
    }

    #[test]
    fn ports_are_cut_off() {
        for (host, expected) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")] {
            assert_eq!(without_port(host), expected);
        }
    }
}
