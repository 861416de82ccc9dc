//! The errors that Evenkeel answers itself, each with a status, a word for metrics and logs, and a fixed sentence.
//! Nothing that a client sent is repeated in the answer.

use super::reply::{Reply, StatusText};
use crate::failure::{Failure, Fault};

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the request is malformed")]
    Malformed,
    #[error("no pool has the name that this request asks for")]
    NoPool,
    #[error("no route matches this host and path")]
    NoRoute,
    #[error("this method is not accepted here")]
    Method,
    #[error("the client took too long to send its request")]
    ClientTimeout,
    #[error("the request's body is larger than allowed")]
    BodyTooLarge,
    #[error("the request's target is longer than is accepted here")]
    TargetTooLong,
    #[error("the expectation cannot be met")]
    Expectation,
    #[error("the request's fields are larger or more than is accepted here")]
    FieldsTooLarge,
    #[error("the request needs a feature that is not implemented")]
    NotImplemented,
    #[error("this version of HTTP is not spoken here")]
    Version,
    #[error("no backend can serve this request now")]
    NoBackend,
    /// An attempt failed, and nothing more could be tried.
    #[error("{0}")]
    Failed(Failure),
    #[error("this connection is not for such a request: ask again on a new one")]
    Misdirected,
    #[error("plain HTTP was sent to a port where HTTPS is spoken")]
    PlainHttp,
    #[error("this is as far as the request was to go")]
    LastHop,
    #[error("the request has come through this balancer before")]
    Loop,
    #[error("the balancer failed")]
    Internal,
}

/// The default answer for an error status without further information.
pub(crate) fn usual(status: u16, form: RefusalFormat, request_id: &str) -> Reply {
    let mut reply = Reply::new(status);
    let title = StatusText(status);
    let body = match form {
        RefusalFormat::Text if request_id.is_empty() => format!("{title}\n"),
        RefusalFormat::Text => format!("{title}\nRequest id: {request_id}\n"),
        RefusalFormat::Html => format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
             <h1>{title}</h1>\n<p>Request id: <code>{request_id}</code></p>\n</html>\n"
        ),
        RefusalFormat::Json => format!(
            "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{status},\"request_id\":\"{request_id}\"}}\n",
            title.name(),
        ),
    };
    reply.content(form.media_type().as_bytes(), body.into());
    reply.field(b"Cache-Control", b"no-store");
    reply
}

/// The content type of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalFormat {
    Text,
    Html,
    /// RFC 9457.
    Json,
}

impl Refusal {
    const STATIC: [Self; 17] = [
        Self::Misdirected,
        Self::PlainHttp,
        Self::Loop,
        Self::LastHop,
        Self::Malformed,
        Self::NoRoute,
        Self::NoPool,
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
        Self::STATIC.into_iter().chain(Failure::ALL.into_iter().filter_map(Failure::refusal).filter(failed))
    }

    pub fn status(self) -> u16 {
        match self {
            Self::LastHop => 200,
            Self::Malformed | Self::PlainHttp => 400,
            Self::Misdirected => 421,
            Self::NoRoute => 404,
            Self::Method => 405,
            Self::ClientTimeout => 408,
            Self::BodyTooLarge => 413,
            Self::TargetTooLong => 414,
            Self::Expectation => 417,
            Self::FieldsTooLarge => 431,
            Self::Internal => 500,
            Self::NotImplemented => 501,
            Self::NoPool => 502,
            Self::NoBackend => 503,
            Self::Failed(failure) => failure.verdict().status,
            Self::Version => 505,
            Self::Loop => 508,
        }
    }

    /// The value of the metric's label and the access log's field.
    pub fn reason(self) -> &'static str {
        match self {
            Self::LastHop => "last-hop",
            Self::Malformed => "malformed",
            Self::PlainHttp => "plain-http",
            Self::Misdirected => "misdirected",
            Self::NoRoute => "no-route",
            Self::NoPool => "no-pool",
            Self::Method => "method",
            Self::ClientTimeout => "client-timeout",
            Self::BodyTooLarge => "body-too-large",
            Self::TargetTooLong => "target-too-long",
            Self::Expectation => "expectation",
            Self::FieldsTooLarge => "fields-too-large",
            Self::NotImplemented => "not-implemented",
            Self::Version => "version",
            Self::Loop => "loop",
            Self::Internal => "internal",
            Self::NoBackend => "no-backend",
            Self::Failed(failure) => failure.word(),
        }
    }

    /// The words of failures by the client's fault.
    pub fn client_failure_words() -> impl Iterator<Item = &'static str> {
        let unread = Failure::ALL.into_iter().filter(|failure| failure.refusal().is_none());
        Self::all().filter(|refusal| refusal.is_client_failure()).map(Self::reason).chain(unread.map(Failure::word))
    }

    /// Whether it is the request's or the client's fault, so that its word is a failure's as well. A request for what
    /// does not exist is none.
    pub fn is_client_failure(self) -> bool {
        match self {
            Self::Malformed
            | Self::PlainHttp
            | Self::Method
            | Self::ClientTimeout
            | Self::BodyTooLarge
            | Self::TargetTooLong
            | Self::Expectation
            | Self::FieldsTooLarge
            | Self::NotImplemented
            | Self::Version => true,
            Self::Failed(failure) => failure.verdict().fault == Fault::Client,
            Self::NoPool
            | Self::NoRoute
            | Self::NoBackend
            | Self::Misdirected
            | Self::LastHop
            | Self::Loop
            | Self::Internal => false,
        }
    }

    /// Seconds after which the client may retry (`Retry-After`).
    pub fn retry_after(self) -> Option<u32> {
        (self.status() == 503).then_some(5)
    }

    /// Whether the connection may be kept alive: not if it is unclear where the next request begins.
    pub fn keeps_connection(self) -> bool {
        matches!(
            self,
            Self::LastHop
                | Self::Misdirected
                | Self::NoRoute
                | Self::NoPool
                | Self::NoBackend
                | Self::Loop
                | Self::Failed(_)
        )
    }

    /// The value of `Allow`, for statuses that need it.
    pub fn allow(self) -> Option<&'static str> {
        matches!(self, Self::Method | Self::LastHop).then_some("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH")
    }

    /// The response. `request_id` consists of letters, digits and `-_.:/+=@`, or is empty.
    pub fn reply(self, form: RefusalFormat, request_id: &str) -> Reply {
        let mut reply = Reply::new(self.status());
        reply.content(form.media_type().as_bytes(), self.body(form, request_id).into());
        self.add_fields(&mut reply);
        reply
    }

    /// Adds the fields that this refusal needs with any content.
    pub fn add_fields(self, reply: &mut Reply) {
        reply.field(b"Cache-Control", b"no-store");
        if let Some(seconds) = self.retry_after() {
            reply.field(b"Retry-After", seconds.to_string().as_bytes());
        }
        if let Some(methods) = self.allow() {
            reply.field(b"Allow", methods.as_bytes());
        }
    }

    /// The content. The only part that may come from the client is the request id, whose characters need no escaping.
    fn body(self, form: RefusalFormat, request_id: &str) -> String {
        let (title, status, reason) = (StatusText(self.status()), self.status(), self.reason());
        match form {
            RefusalFormat::Text if request_id.is_empty() => format!("{title}: {self}.\n"),
            RefusalFormat::Text => format!("{title}: {self}.\nRequest id: {request_id}\n"),
            RefusalFormat::Html => format!(
                "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
                 <h1>{title}</h1>\n<p>{self}.</p>\n<p>Request id: <code>{request_id}</code></p>\n</html>\n"
            ),
            RefusalFormat::Json => format!(
                "{{\"type\":\"about:blank\",\"title\":\"{}\",\"status\":{status},\"detail\":\"{self}\",\
                 \"reason\":\"{reason}\",\"request_id\":\"{request_id}\"}}\n",
                title.name(),
            ),
        }
    }
}

impl RefusalFormat {
    /// The format that these values of `Accept` prefer (RFC 9110 §12.5.1). HTML and JSON must be named; `*/*` gets
    /// text.
    pub fn asked<'a>(accept: impl Iterator<Item = &'a [u8]>) -> Self {
        // Weight in thousandths, and whether the format is named. Among equals the first wins.
        let mut best = ((0, false), Self::Text);
        for range in accept.flat_map(|list| list.split(|&byte| byte == b',')) {
            let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (form, is_named) = match media.as_slice() {
                b"text/html" | b"application/xhtml+xml" => (Self::Html, true),
                b"application/json" | b"application/problem+json" => (Self::Json, true),
                b"text/plain" => (Self::Text, true),
                b"*/*" | b"text/*" => (Self::Text, false),
                _ => continue,
            };
            let weight = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
            let weight = weight.map_or(Some(1000), thousandths).unwrap_or(0);
            if weight > 0 && (weight, is_named) > best.0 {
                best = ((weight, is_named), form);
            }
        }
        best.1
    }

    const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
            Self::Json => "application/problem+json",
        }
    }
}

/// A weight (RFC 9110 §12.4.2) of up to three decimals.
fn thousandths(weight: &[u8]) -> Option<u32> {
    let weight: f64 = std::str::from_utf8(weight).ok()?.parse().ok()?;
    (0.0..=1.0).contains(&weight).then_some((weight * 1000.0) as u32)
}

impl Failure {
    /// The refusal for a failure after which nothing more is tried; `None` if nobody reads it.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            Self::ClientGone | Self::ClientStalled => None,
            Self::ClientTimeout => Some(Refusal::ClientTimeout),
            Self::BodyTooLarge => Some(Refusal::BodyTooLarge),
            Self::RequestMalformed => Some(Refusal::Malformed),
            Self::Internal => Some(Refusal::Internal),
            _ => Some(Refusal::Failed(self)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_bodies_have_status_cause_and_request_id() {
        let text = "503 Service Unavailable: no backend can serve this request now.\n";
        assert_eq!(Refusal::NoBackend.body(RefusalFormat::Text, ""), text);
        assert_eq!(Refusal::NoBackend.body(RefusalFormat::Text, "abc"), format!("{text}Request id: abc\n"));
        for refusal in Refusal::all() {
            let json: serde_json::Value =
                serde_json::from_str(&refusal.body(RefusalFormat::Json, "a-b.c")).expect("JSON");
            assert_eq!((&json["status"], &json["request_id"]), (&refusal.status().into(), &"a-b.c".into()), "{json}");
            assert_eq!((&json["detail"], &json["reason"]), (&refusal.to_string().into(), &refusal.reason().into()));
            let html = refusal.body(RefusalFormat::Html, "a-b.c");
            assert!(html.contains(&format!("<p>{refusal}.</p>")) && html.contains("<code>a-b.c</code>"), "{html}");
            assert!(!refusal.to_string().contains(['<', '>', '&', '"', '\\']), "{refusal}");
        }
    }

    #[test]
    fn the_format_follows_accept() {
        use RefusalFormat::{Html, Json, Text};
        for (accept, form) in [
            (&[][..], Text),
            (&["*/*"], Text),
            (&[""], Text),
            (&["text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"], Html),
            (&["application/json, text/plain, */*"], Json),
            (&["application/json, text/javascript, */*; q=0.01"], Json),
            (&["text/plain, application/json"], Text),
            (&["*/*, application/json"], Json),
            (&["application/problem+json"], Json),
            (&["TEXT/HTML; level=1"], Html),
            (&["text/html;q=0.5, application/json;q=0.9"], Json),
            (&["text/html;q=0.5", "application/json"], Json),
            (&["text/html;q=0.5, */*"], Text),
            (&["text/html;q=0, */*;q=0.1"], Text),
            (&["text/html;q=x"], Text),
            (&["text/html;q=7"], Text),
            (&["image/png"], Text),
            (&["text/*"], Text),
            (&["text/html\u{e4}"], Text),
            (&[",;q=1,,text/html"], Html),
        ] {
            assert_eq!(RefusalFormat::asked(accept.iter().map(|value| value.as_bytes())), form, "{accept:?}");
        }
    }

    #[test]
    fn only_temporary_refusals_have_retry_after() {
        assert_eq!(Refusal::NoBackend.retry_after(), Some(5));
        assert_eq!(Refusal::Failed(Failure::OutOfResources).retry_after(), Some(5));
        assert_eq!(Refusal::Failed(Failure::Reset).retry_after(), None);
    }

    #[test]
    fn the_reason_of_a_refusal_matches_its_failure() {
        for failure in Failure::ALL {
            let Some(refusal) = failure.refusal() else {
                assert!(matches!(failure, Failure::ClientGone | Failure::ClientStalled), "{failure:?}");
                continue;
            };
            assert_eq!((refusal.reason(), refusal.status()), (failure.word(), failure.verdict().status), "{failure:?}");
            assert_eq!(refusal.to_string(), failure.to_string());
        }
    }
}
