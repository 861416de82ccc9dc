//! Converts errors of Pingora's proxy to failures.

use pingora_core::prelude::{Error, ErrorSource, ErrorType};

use crate::failure::{AttemptError, Failure};
use crate::probe::pingora_error;

/// The state of an exchange when the error occurred.
#[derive(Debug, Clone, Copy)]
pub(super) struct AttemptProgress {
    /// The head of the response has arrived.
    pub has_head: bool,
    /// The backend's connection had served another request before.
    pub is_reused: bool,
    /// The client had not sent the whole request body yet.
    pub is_uploading: bool,
}

/// How the exchange failed.
pub(super) fn failed(error: &Error, progress: AttemptProgress) -> AttemptError {
    if let Some(failed) = error.root_cause().downcast_ref() {
        return *failed;
    }
    match error.esource() {
        ErrorSource::Downstream => of_client(error.etype()).into(),
        ErrorSource::Internal => Failure::Internal.into(),
        ErrorSource::Upstream | ErrorSource::Unset => of_backend(error, progress),
    }
}

fn of_client(error: &ErrorType) -> Failure {
    match error {
        ErrorType::ReadTimedout => Failure::ClientTimeout,
        ErrorType::InvalidHTTPHeader | ErrorType::H1Error => Failure::RequestMalformed,
        ErrorType::Custom(INVALID_CHUNK) => Failure::RequestMalformed,
        _ => Failure::ClientGone,
    }
}

/// Pingora's name for an error in the framing of a chunked body.
const INVALID_CHUNK: &str = "InvalidChunk";

fn of_backend(error: &Error, progress: AttemptProgress) -> AttemptError {
    use ErrorType::{ConnectionClosed, Custom, ReadError, ReadTimedout, WriteError};
    let failure = match error.etype() {
        ReadTimedout if progress.has_head => Failure::ResponseStalled,
        Custom(INVALID_CHUNK) => Failure::ResponseBodyMalformed,
        _ if progress.has_head => Failure::ResponseTruncated,
        ConnectionClosed | ReadError | WriteError if progress.is_reused => Failure::StaleConnection,
        // Pingora waits for the response from the start, so part of the time was the client's.
        ReadTimedout if progress.is_uploading => Failure::ClientTimeout,
        _ => return pingora_error::failed(error),
    };
    failure.into()
}

#[cfg(test)]
mod tests {
    use pingora_core::prelude::OrErr;

    use super::*;

    const WAITING: AttemptProgress = AttemptProgress { has_head: false, is_reused: false, is_uploading: false };

    #[test]
    fn pingora_errors_map_to_failures_by_side_and_stage() {
        use ErrorSource::{Downstream, Internal, Upstream};
        use ErrorType::{ConnectTimedout, ConnectionClosed, ReadError, ReadTimedout, WriteTimedout};
        let [passing, reused, uploading] = [
            AttemptProgress { has_head: true, ..WAITING },
            AttemptProgress { is_reused: true, ..WAITING },
            AttemptProgress { is_uploading: true, ..WAITING },
        ];
        for (kind, source, progress, expected) in [
            (ConnectionClosed, Upstream, WAITING, Failure::Closed),
            (ReadError, Upstream, WAITING, Failure::Reset),
            (ReadError, Upstream, reused, Failure::StaleConnection),
            (ReadTimedout, Upstream, WAITING, Failure::ResponseTimeout),
            (ReadTimedout, Upstream, reused, Failure::ResponseTimeout),
            (ReadTimedout, Upstream, uploading, Failure::ClientTimeout),
            (WriteTimedout, Upstream, uploading, Failure::WriteTimeout),
            (ConnectTimedout, Upstream, WAITING, Failure::ConnectTimeout),
            (ReadTimedout, Upstream, passing, Failure::ResponseStalled),
            (ConnectionClosed, Upstream, passing, Failure::ResponseTruncated),
            (ErrorType::Custom(INVALID_CHUNK), Upstream, passing, Failure::ResponseBodyMalformed),
            (ConnectionClosed, Downstream, passing, Failure::ClientGone),
            (ReadTimedout, Downstream, uploading, Failure::ClientTimeout),
            (ErrorType::Custom(INVALID_CHUNK), Downstream, uploading, Failure::RequestMalformed),
            (ErrorType::InternalError, Internal, WAITING, Failure::Internal),
        ] {
            let mut error = Error::new(kind.clone());
            error.esource = source;
            assert_eq!(failed(&error, progress).failure, expected, "{kind:?} {progress:?}");
        }
    }

    #[test]
    fn our_error_is_found_beneath_pingoras() {
        let ours = AttemptError::from(Failure::NoLocalPort);
        let error = Err::<(), _>(ours).or_err(ErrorType::ConnectError, "not connected").expect_err("an error");
        let error = Error::because(ErrorType::InternalError, "Fail to connect", error);
        assert_eq!(failed(&error, WAITING), ours);
    }
}
