//! The answers that Evenkeel gives itself, each with its status, the word that counts it and a fixed sentence: what
//! a client sent is never repeated to it.

use std::fmt::{self, Write};

use crate::date;

use crate::failure::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request is malformed")]
    Malformed,
    #[error("no route leads anywhere for this host and path")]
    NoRoute,
    #[error("this method is not accepted here")]
    Method,
    #[error("the client took too long to send its request")]
    ClientTimeout,
    #[error("the request's body is larger than is accepted here")]
    BodyTooLarge,
    #[error("the request's target is longer than is accepted here")]
    TargetTooLong,
    #[error("the expectation cannot be met")]
    Expectation,
    #[error("the request's fields are larger or more than is accepted here")]
    FieldsTooLarge,
    #[error("the request needs what is not implemented here")]
    NotImplemented,
    #[error("this version of HTTP is not spoken here")]
    Version,
    #[error("no backend can serve this request now")]
    NoBackend,
    /// An attempt failed, and nothing more could be tried.
    #[error("{0}")]
    Failed(Failure),
    #[error("this is as far as the request was to go")]
    LastHop,
    #[error("the balancer failed")]
    Internal,
}

impl Refusal {
    const OWN: [Self; 13] = [
        Self::LastHop,
        Self::Malformed,
        Self::NoRoute,
        Self::Method,
        Self::ClientTimeout,
        Self::BodyTooLarge,
        Self::TargetTooLong,
        Self::Expectation,
        Self::FieldsTooLarge,
        Self::Internal,
        Self::NotImplemented,
        Self::NoBackend,
        Self::Version,
    ];

    pub fn all() -> impl Iterator<Item = Self> {
        let failed = |refusal: &Self| matches!(refusal, Self::Failed(_));
        Self::OWN.into_iter().chain(Failure::ALL.into_iter().filter_map(Failure::refusal).filter(failed))
    }

    pub fn status(self) -> u16 {
        match self {
            Self::LastHop => 200,
            Self::Malformed => 400,
            Self::NoRoute => 404,
            Self::Method => 405,
            Self::ClientTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::FieldsTooLarge => 431,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::NoBackend => 503,
            Self::Failed(failure) => failure.verdict().status,
            Self::Version => 505,
        }
    }

    /// The value of the metric's label and the access log's field.
    pub fn reason(self) -> &'static str {
        match self {
            Self::LastHop => "last-hop",
            Self::Malformed => "malformed",
            Self::NoRoute => "no-route",
            Self::Method => "method",
            Self::ClientTimeout => "client-timeout",
            Self::BodyTooLarge => "body-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::Expectation => "expectation",
            Self::FieldsTooLarge => "fields-too-large",
            Self::NotImplemented => "not-implemented",
            Self::Version => "version",
            Self::Internal => "internal",
            Self::NoBackend => "no-backend",
            Self::Failed(failure) => failure.word(),
        }
    }

    /// Seconds after which a new try makes sense.
    pub fn retry_after(self) -> Option<u32> {
        (self.status() == 503).then_some(5)
    }

    /// Whether the connection can carry another request: not when what follows on it is in doubt.
    pub fn keeps_connection(self) -> bool {
        matches!(self, Self::LastHop | Self::NoRoute | Self::NoBackend | Self::Failed(_))
    }

    /// The methods that are served, for the answers that must or may name them.
    pub fn allow(self) -> Option<&'static str> {
        matches!(self, Self::Method | Self::LastHop).then_some("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH")
    }

    /// Appends the whole answer as an HTTP/1.1 message. `is_http10`: the client has to be told that its connection
    /// stays.
    pub fn write(self, request_id: &str, keeps_connection: bool, is_http10: bool, is_head: bool, out: &mut Vec<u8>) {
        let body = self.body();
        let mut head = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             Date: {}\r\n",
            Title(self.status()),
            body.len(),
            String::from_utf8_lossy(&date::now()),
        );
        let mut field = |name: &str, value: &dyn fmt::Display| {
            // Writing to a string does not fail.
            let _ = write!(head, "{name}: {value}\r\n");
        };
        if !request_id.is_empty() {
            field("X-Request-Id", &request_id);
        }
        if let Some(seconds) = self.retry_after() {
            field("Retry-After", &seconds);
        }
        if let Some(methods) = self.allow() {
            field("Allow", &methods);
        }
        match (keeps_connection, is_http10) {
            (false, _) => field("Connection", &"close"),
            (true, true) => field("Connection", &"keep-alive"),
            (true, false) => {}
        }
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(b"\r\n");
        if !is_head {
            out.extend_from_slice(body.as_bytes());
        }
    }

    /// The answer's body, as `text/plain`.
    pub fn body(self) -> String {
        format!("{}: {self}.\n", Title(self.status()))
    }
}

impl Failure {
    /// What the client is answered if nothing more can be tried; `None` when it is gone.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::ClientGone => None,
            Self::ClientTimeout => Some(Refusal::ClientTimeout),
            Self::BodyTooLarge => Some(Refusal::BodyTooLarge),
            Self::RequestMalformed => Some(Refusal::Malformed),
            _ => Some(Refusal::Failed(self)),
        }
    }
}

/// A status code with its name.
struct Title(u16);

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = http::StatusCode::from_u16(self.0).ok().and_then(|code| code.canonical_reason());
        write!(f, "{} {}", self.0, name.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_name_the_status_and_the_cause() {
        assert_eq!(Refusal::NoBackend.body(), "503 Service Unavailable: no backend can serve this request now.\n");
    }

    #[test]
    fn only_what_may_pass_soon_invites_back() {
        assert_eq!(Refusal::NoBackend.retry_after(), Some(5));
        assert_eq!(Refusal::Failed(Failure::OutOfResources).retry_after(), Some(5));
        assert_eq!(Refusal::Failed(Failure::Reset).retry_after(), None);
    }

    #[test]
    fn a_failure_and_its_answer_say_the_same() {
        for failure in Failure::ALL {
            let Some(refusal) = failure.refusal() else {
                assert_eq!(failure, Failure::ClientGone);
                continue;
            };
            assert_eq!((refusal.reason(), refusal.status()), (failure.word(), failure.verdict().status), "{failure:?}");
            assert_eq!(refusal.to_string(), failure.to_string());
        }
    }
}
