//! The table of failures. For each way in which an exchange can fail it states whose fault that is, whether another
//! backend may be tried, whether it counts towards an ejection, the answer to the client, and the name in logs, metrics
//! and answers.
//!
//! What a client or its request causes never counts against a backend and is not tried on the others: one address that
//! always fails must not take a whole pool out of service. A malformed field or a head above our limits is such a case,
//! because the application writes the fields of a response, sometimes with what the client sent. The status line and
//! the framing of the body are written by the server itself: what is wrong there is the backend's fault.

use std::time::Duration;
use std::{fmt, io};

use rustix::io::Errno;

use crate::config::backend::SocketAddress;

/// How an attempt on a backend failed, or why the client ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    ConnectRefused,
    ConnectQueueFull,
    ConnectUnreachable,
    ConnectReset,
    ConnectTimeout,
    TlsHandshake,
    TlsCertificate,
    Unresolved,
    NoLocalPort,
    NoSourceAddress,
    OutOfResources,
    QueueTimeout,
    StaleConnection,
    Closed,
    Reset,
    ClosedDuringUpload,
    WriteTimeout,
    ResponseTimeout,
    NotHttp,
    ResponseHeadTooLarge,
    ResponseTooManyFields,
    ResponseHeadMalformed,
    UnaskedUpgrade,
    NoWebSocket,
    TooManyInterimResponses,
    ResponseBodyMalformed,
    ResponseTruncated,
    ClosedDuringDownload,
    ResponseStalled,
    ClientGone,
    ClientStalled,
    ClientTimeout,
    BodyTooLarge,
    RequestMalformed,
    ConnectionRevoked,
    Shutdown,
    Killed,
    Internal,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    pub fault: Fault,
    pub retry: Retry,
    pub ejection: EjectionRule,
    /// The status code that the client is sent. If the client has left, it only appears in log and metrics.
    pub status: u16,
    /// The value of labels and log fields.
    pub word: &'static str,
    /// A sentence for the client, sent after the status.
    sentence: &'static str,
}

/// Who caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    Client,
    /// The request itself: every backend would fail in the same way.
    Request,
    Backend,
    Balancer,
    /// Nobody is at fault: a connection was closed and used at the same moment, or the backend has a shorter timeout
    /// for slow clients than we have.
    Nobody,
}

/// Whether another backend may be tried (RFC 9110 §9.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// The backend may have begun to process the request.
    IfIdempotent,
    /// Nothing of the request was sent.
    Always,
}

/// Whether a failure counts towards the ejection of its backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EjectionRule {
    Never,
    /// If no other response's head has come from the backend during the wait: one slow address among others that are
    /// answered is no sign of a frozen backend.
    IfSilent,
    Counts,
}

/// The properties of a request that decide whether it may be sent again.
#[derive(Debug, Clone, Copy)]
pub struct Replay {
    /// RFC 9110 §9.2.2.
    pub is_idempotent: bool,
    /// All of the body that has been read from the client is still buffered.
    pub has_body: bool,
}

const NO_UNIX_SOCKET: &str = "there is no such file: start its server, or correct the path";
const CLOSED_UNIX_SOCKET: &str =
    "permission denied: this user needs the right to write to the socket, and to search the folders on the way to it";
const FULL_UNIX_SOCKET: &str = "its server accepts too slowly: give it more workers, a longer queue (the backlog of listen(2), up to \
     net.core.somaxconn), or max_connections here";
const DEAD_UNIX_SOCKET: &str = "no process listens on the socket: its server has ended and left the file behind";

impl Failure {
    pub const ALL: [Self; 38] = [
        Self::ConnectRefused,
        Self::ConnectQueueFull,
        Self::ConnectUnreachable,
        Self::ConnectReset,
        Self::ConnectTimeout,
        Self::TlsHandshake,
        Self::TlsCertificate,
        Self::Unresolved,
        Self::NoLocalPort,
        Self::NoSourceAddress,
        Self::OutOfResources,
        Self::QueueTimeout,
        Self::StaleConnection,
        Self::Closed,
        Self::Reset,
        Self::ClosedDuringUpload,
        Self::WriteTimeout,
        Self::ResponseTimeout,
        Self::NotHttp,
        Self::ResponseHeadTooLarge,
        Self::ResponseTooManyFields,
        Self::ResponseHeadMalformed,
        Self::UnaskedUpgrade,
        Self::NoWebSocket,
        Self::TooManyInterimResponses,
        Self::ResponseBodyMalformed,
        Self::ResponseTruncated,
        Self::ClosedDuringDownload,
        Self::ResponseStalled,
        Self::ClientGone,
        Self::ClientStalled,
        Self::ClientTimeout,
        Self::BodyTooLarge,
        Self::RequestMalformed,
        Self::ConnectionRevoked,
        Self::Shutdown,
        Self::Killed,
        Self::Internal,
    ];

    pub const fn verdict(self) -> Verdict {
        use EjectionRule::{Counts, IfSilent};
        use Fault::{Backend, Balancer, Client, Nobody, Request};
        use Retry::{Always, IfIdempotent, Never};
        const NO: EjectionRule = EjectionRule::Never;
        #[rustfmt::skip]
        let (fault, retry, ejection, status, word, sentence) = match self {
            Self::ConnectRefused => (Backend, Always, Counts, 502, "connect-refused", "the backend refused the connection"),
            Self::ConnectQueueFull => (Backend, Always, Counts, 502, "connect-queue-full", "the backend's queue of connections to be accepted is full"),
            Self::ConnectUnreachable => (Backend, Always, Counts, 502, "connect-unreachable", "the backend cannot be reached"),
            Self::ConnectReset => (Backend, Always, Counts, 502, "connect-reset", "the backend reset the connection"),
            Self::ConnectTimeout => (Backend, Always, Counts, 504, "connect-timeout", "the backend did not accept a connection in time"),
            Self::TlsHandshake => (Backend, Always, Counts, 502, "tls-handshake", "no TLS connection to the backend could be made"),
            Self::TlsCertificate => (Backend, Always, Counts, 502, "tls-certificate", "the backend's certificate cannot be accepted"),
            Self::Unresolved => (Backend, Always, Counts, 502, "unresolved", "the backend's name does not resolve"),
            // A port may be available for another address.
            Self::NoLocalPort => (Balancer, Always, NO, 503, "no-local-port", "the balancer has no local port left for a connection to the backend"),
            Self::NoSourceAddress => (Balancer, Always, NO, 503, "no-source-address", "the balancer does not have the configured source address"),
            Self::OutOfResources => (Balancer, Never, NO, 503, "out-of-resources", "the balancer cannot open another connection now"),
            Self::QueueTimeout => (Nobody, Never, NO, 503, "queue-timeout", "every backend is at its limit on connections"),
            Self::StaleConnection => (Nobody, IfIdempotent, NO, 502, "stale-connection", "the backend closed the connection when the request was sent"),
            Self::Closed => (Backend, IfIdempotent, Counts, 502, "closed", "the backend closed the connection before its response"),
            Self::Reset => (Backend, IfIdempotent, Counts, 502, "reset", "the backend reset the connection before its response"),
            // A backend may limit how long it waits for content that the client does not send.
            Self::ClosedDuringUpload => (Nobody, IfIdempotent, NO, 502, "closed-during-upload", "the backend closed the connection while it waited for the client to send more"),
            Self::WriteTimeout => (Backend, IfIdempotent, IfSilent, 504, "write-timeout", "the backend did not accept the request in time"),
            Self::ResponseTimeout => (Backend, IfIdempotent, IfSilent, 504, "response-timeout", "the backend did not respond in time"),
            Self::NotHttp => (Backend, IfIdempotent, Counts, 502, "not-http", "the backend does not speak HTTP/1.1"),
            Self::ResponseHeadTooLarge => (Request, Never, NO, 502, "response-head-too-large", "the head of the response is larger than allowed"),
            Self::ResponseTooManyFields => (Request, Never, NO, 502, "response-too-many-fields", "the response has more fields than allowed"),
            Self::ResponseHeadMalformed => (Request, Never, NO, 502, "response-head-malformed", "the response's head is malformed"),
            Self::UnaskedUpgrade => (Request, Never, NO, 502, "unasked-upgrade", "the backend switched protocols without being asked"),
            // The backend never announced support: any client may ask for it.
            Self::NoWebSocket => (Request, Never, NO, 502, "no-websocket", "the backend did not switch to WebSocket"),
            Self::TooManyInterimResponses => (Request, Never, NO, 502, "too-many-interim-responses", "the backend sent too many interim responses"),
            Self::ResponseBodyMalformed => (Backend, IfIdempotent, Counts, 502, "response-body-malformed", "the framing of the response's body is malformed"),
            Self::ResponseTruncated => (Backend, Never, Counts, 502, "response-truncated", "the backend truncated its response"),
            // A backend may limit how long it waits for a client that reads its response slowly.
            Self::ClosedDuringDownload => (Nobody, Never, NO, 502, "closed-during-download", "the backend closed the connection while it waited for the client to read more"),
            // The response's own head has arrived: a frozen backend is detected by requests that wait for one.
            Self::ResponseStalled => (Backend, Never, NO, 504, "response-stalled", "the backend paused too long within its response"),
            Self::ClientGone => (Client, Never, NO, 499, "client-gone", "the client left"),
            // Nobody gets this status: the client is disconnected.
            Self::ClientStalled => (Client, Never, NO, 499, "client-stalled", "the client did not take its response in time, and was disconnected"),
            Self::ClientTimeout => (Client, Never, NO, 408, "client-timeout", "the client took too long to send its request"),
            Self::BodyTooLarge => (Client, Never, NO, 413, "body-too-large", "the request's body is larger than allowed"),
            Self::RequestMalformed => (Client, Never, NO, 400, "malformed", "the request is malformed"),
            Self::ConnectionRevoked => (Balancer, Never, NO, 421, "connection-revoked", "the clients of this connection are no longer accepted: try again on a new one"),
            Self::Shutdown => (Balancer, Never, NO, 503, "shutdown", "the balancer stopped before the exchange was over"),
            Self::Killed => (Balancer, IfIdempotent, NO, 503, "killed", "an operator ended the exchanges on the backend"),
            Self::Internal => (Balancer, Never, NO, 500, "internal", "the balancer failed"),
        };
        Verdict { fault, retry, ejection, status, word, sentence }
    }

    /// Its name in logs and metrics.
    pub const fn word(self) -> &'static str {
        self.verdict().word
    }

    /// Whether it counts as a failure of the backend.
    pub fn is_backend_fault(self) -> bool {
        self.verdict().fault == Fault::Backend
    }

    /// Whether the request may be sent again.
    pub fn allows_retry(self, replay: Replay) -> bool {
        match self.verdict().retry {
            Retry::Never => false,
            Retry::IfIdempotent => replay.is_idempotent && replay.has_body,
            Retry::Always => replay.has_body,
        }
    }

    /// The failure for an error of `connect`.
    pub fn of_connecting(error: &io::Error) -> Self {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Self::OutOfResources,
            // All ports of net.ipv4.ip_local_port_range are in use for this address and port.
            Some(Errno::ADDRNOTAVAIL) => Self::NoLocalPort,
            Some(Errno::CONNREFUSED) => Self::ConnectRefused,
            Some(Errno::CONNRESET | Errno::CONNABORTED) => Self::ConnectReset,
            Some(Errno::TIMEDOUT) => Self::ConnectTimeout,
            // No route, a host that is down, a firewall rule, or an invalid address.
            _ => Self::ConnectUnreachable,
        }
    }
}

/// A failed attempt: the failure, with details for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptError {
    pub failure: Failure,
    pub detail: Option<Detail>,
}

/// Details of a failure or a refusal for the logs. Settings are named with their section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// The error of the operating system.
    Errno(Errno),
    /// A limit was exceeded. `value` is the actual size, if it is known.
    Limit { setting: &'static str, limit: usize, value: Option<usize> },
    /// A timeout has passed.
    Timeout { setting: &'static str, limit: Duration },
    /// A peer moved fewer bytes per second.
    Rate { setting: &'static str, limit: u32 },
    /// A fixed sentence.
    Reason(&'static str),
}

/// A failure of real traffic on a backend, which counts towards its ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackendFailure {
    Attempt(AttemptError),
    /// A response with one of `[pool.ejection] statuses`.
    Status(u16),
}

impl AttemptError {
    /// The error for a failed `connect` to `address`.
    pub fn of_connecting(address: &SocketAddress, error: &io::Error) -> Self {
        let errno = Errno::from_io_error(error);
        let reason = match (address, errno) {
            (SocketAddress::Unix(_), Some(Errno::NOENT)) => Some(NO_UNIX_SOCKET),
            (SocketAddress::Unix(_), Some(Errno::ACCESS)) => Some(CLOSED_UNIX_SOCKET),
            (SocketAddress::Unix(_), Some(Errno::CONNREFUSED)) => Some(DEAD_UNIX_SOCKET),
            // Over TCP the system waits instead.
            (SocketAddress::Unix(_), Some(Errno::AGAIN)) => {
                return Self { failure: Failure::ConnectQueueFull, detail: Some(Detail::Reason(FULL_UNIX_SOCKET)) };
            }
            _ => None,
        };
        Self { failure: Failure::of_connecting(error), detail: reason.map(Detail::Reason).or(errno.map(Detail::Errno)) }
    }
}

impl Detail {
    /// The part that does not depend on the request, by which repeated lines of a log are counted.
    pub const fn kind(self) -> Option<&'static str> {
        match self {
            Self::Limit { setting, .. } | Self::Timeout { setting, .. } | Self::Rate { setting, .. } => Some(setting),
            Self::Reason(reason) => Some(reason),
            Self::Errno(_) => None,
        }
    }
}

/// The failure's name, and details if there are any.
impl fmt::Display for AttemptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.detail {
            None => f.write_str(self.failure.word()),
            Some(detail) => write!(f, "{} ({detail})", self.failure.word()),
        }
    }
}

impl std::error::Error for AttemptError {}

impl From<Failure> for AttemptError {
    fn from(failure: Failure) -> Self {
        Self { failure, detail: None }
    }
}

impl BackendFailure {
    /// Its name in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Attempt(failed) => failed.failure.word(),
            Self::Status(_) => "status",
        }
    }
}

impl fmt::Display for BackendFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "status {status}"),
            Self::Attempt(failed) => failed.fmt(f),
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Errno(errno) => write!(f, "{errno}"),
            Self::Limit { setting, limit, value: Some(value) } => write!(f, "{value}, more than {setting} ({limit})"),
            Self::Limit { setting, limit, value: None } => write!(f, "more than {setting} ({limit})"),
            Self::Timeout { setting, limit } => write!(f, "longer than {setting} ({limit:?})"),
            Self::Rate { setting, limit } => write!(f, "less than {setting} ({limit} bytes per second)"),
            Self::Reason(reason) => f.write_str(reason),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.verdict().sentence)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn only_safe_attempts_are_repeated() {
        for (failure, is_idempotent, has_body, expected) in [
            (Failure::ConnectRefused, false, true, true),
            (Failure::ConnectRefused, true, true, true),
            (Failure::ConnectTimeout, false, true, true),
            (Failure::ConnectRefused, true, false, false),
            (Failure::StaleConnection, true, true, true),
            (Failure::StaleConnection, false, true, false),
            (Failure::Reset, true, true, true),
            (Failure::Reset, true, false, false),
            (Failure::Reset, false, true, false),
            (Failure::ResponseTimeout, true, true, true),
            (Failure::ResponseTimeout, false, true, false),
            (Failure::ResponseTruncated, true, true, false),
            (Failure::ResponseStalled, true, true, false),
            (Failure::ResponseHeadTooLarge, true, true, false),
            (Failure::OutOfResources, true, true, false),
        ] {
            let replay = Replay { is_idempotent, has_body };
            assert_eq!(failure.allows_retry(replay), expected, "{failure:?} {replay:?}");
        }
    }

    #[test]
    fn failures_that_are_not_the_backends_fault_are_neither_counted_nor_retried() {
        for failure in Failure::ALL {
            let Verdict { fault, retry, ejection, .. } = failure.verdict();
            if fault != Fault::Backend {
                assert_eq!(ejection, EjectionRule::Never, "{failure:?}");
            }
            if matches!(fault, Fault::Client | Fault::Request) {
                assert_eq!(retry, Retry::Never, "{failure:?}");
            }
        }
    }

    #[test]
    fn docs_show_the_table_of_failures() {
        let row = |failure: Failure| {
            let Verdict { fault, retry, ejection, status, word, sentence } = failure.verdict();
            let retry = match retry {
                Retry::Never => "no",
                Retry::IfIdempotent => "if repeating is safe",
                Retry::Always => "yes",
            };
            let counts = match ejection {
                EjectionRule::Never => "no",
                EjectionRule::IfSilent => "if it answers no other request",
                EjectionRule::Counts => "yes",
            };
            let fault = format!("{fault:?}").to_lowercase();
            format!("| `{word}` | {sentence} | {status} | {fault} | {retry} | {counts} |\n")
        };
        let rows: String = Failure::ALL.into_iter().map(row).collect();
        let head =
            "| word | what happened | status | whose fault | another backend is tried | counts against the backend |";
        let table = format!("{head}\n|---|---|---|---|---|---|\n{rows}");
        let page = include_str!("../../docs/answers.md");
        let (begin, end) = ("<!-- failures: begin -->\n", "<!-- failures: end -->");
        let shown = page.split_once(begin).and_then(|(_, rest)| rest.split_once(end)).map(|(shown, _)| shown);
        assert_eq!(shown, Some(table.as_str()), "between these marks of docs/answers.md belongs:\n{table}");
    }

    #[test]
    fn each_failure_has_its_own_word() {
        let words: HashSet<_> = Failure::ALL.map(Failure::word).into();
        assert_eq!(words.len(), Failure::ALL.len());
    }

    #[test]
    fn lack_of_files_memory_or_ports_is_distinguished_from_an_unreachable_backend() {
        for (errno, failure) in [
            (Errno::MFILE, Failure::OutOfResources),
            (Errno::ADDRNOTAVAIL, Failure::NoLocalPort),
            (Errno::NOMEM, Failure::OutOfResources),
            (Errno::CONNREFUSED, Failure::ConnectRefused),
            (Errno::CONNRESET, Failure::ConnectReset),
            (Errno::TIMEDOUT, Failure::ConnectTimeout),
            (Errno::HOSTUNREACH, Failure::ConnectUnreachable),
            (Errno::NETUNREACH, Failure::ConnectUnreachable),
        ] {
            assert_eq!(Failure::of_connecting(&io::Error::from_raw_os_error(errno.raw_os_error())), failure);
        }
    }

    #[test]
    fn only_failures_of_the_backend_are_its_fault() {
        assert!(Failure::Reset.is_backend_fault() && Failure::ResponseStalled.is_backend_fault());
        for failure in [Failure::ClientGone, Failure::NoWebSocket, Failure::Killed, Failure::StaleConnection] {
            assert!(!failure.is_backend_fault(), "{failure:?}");
        }
    }

    #[test]
    fn a_failure_is_displayed_with_its_details() {
        let limit = |value| Detail::Limit { setting: "max_fields", limit: 100, value };
        for (detail, expected) in [
            (None, "reset"),
            (Some(Detail::Errno(Errno::CONNRESET)), "reset (Connection reset by peer (os error 104))"),
            (Some(limit(Some(120))), "reset (120, more than max_fields (100))"),
            (Some(limit(None)), "reset (more than max_fields (100))"),
            (
                Some(Detail::Timeout { setting: "response_timeout", limit: Duration::from_millis(1500) }),
                "reset (longer than response_timeout (1.5s))",
            ),
            (
                Some(Detail::Rate { setting: "min_rate", limit: 240 }),
                "reset (less than min_rate (240 bytes per second))",
            ),
            (Some(Detail::Reason("nobody listens")), "reset (nobody listens)"),
        ] {
            let error = AttemptError { failure: Failure::Reset, detail };
            assert_eq!(error.to_string(), expected);
            let failure = BackendFailure::Attempt(error);
            assert_eq!((failure.to_string().as_str(), failure.word()), (expected, "reset"));
        }
        let failure = BackendFailure::Status(503);
        assert_eq!((failure.to_string().as_str(), failure.word()), ("status 503", "status"));
        assert_eq!(Failure::Killed.to_string(), "an operator ended the exchanges on the backend");
    }

    #[test]
    fn tcp_connect_errors_have_the_text_of_the_system() {
        let address = SocketAddress::Ip(([192, 0, 2, 1], 80).into());
        for errno in [Errno::NOENT, Errno::ACCESS, Errno::CONNREFUSED, Errno::AGAIN] {
            let error = AttemptError::of_connecting(&address, &io::Error::from_raw_os_error(errno.raw_os_error()));
            assert_eq!(error.detail, Some(Detail::Errno(errno)));
            assert_ne!(error.failure, Failure::ConnectQueueFull);
        }
    }

    #[test]
    fn unix_socket_connect_errors_explain_the_fix() {
        let address = SocketAddress::Unix(std::path::Path::new("/run/app.sock").into());
        for (errno, failure, reason) in [
            (Errno::NOENT, Failure::ConnectUnreachable, NO_UNIX_SOCKET),
            (Errno::ACCESS, Failure::ConnectUnreachable, CLOSED_UNIX_SOCKET),
            (Errno::CONNREFUSED, Failure::ConnectRefused, DEAD_UNIX_SOCKET),
            (Errno::AGAIN, Failure::ConnectQueueFull, FULL_UNIX_SOCKET),
        ] {
            let failed = AttemptError::of_connecting(&address, &io::Error::from_raw_os_error(errno.raw_os_error()));
            assert_eq!(failed, AttemptError { failure, detail: Some(Detail::Reason(reason)) });
        }
    }
}
