//! Maps Pingora's errors to the table of failures, for probes.

use pingora::prelude::{Error, ErrorType};

use crate::failure::{AttemptError, Failure};

/// How a probe failed before the head of the response arrived.
pub(crate) fn failed(error: &Error) -> AttemptError {
    // Connections are made by our code, and Pingora passes its error on.
    if let Some(failed) = error.root_cause().downcast_ref() {
        return *failed;
    }
    let failure = match error.etype() {
        ErrorType::ReadTimedout => Failure::ResponseTimeout,
        ErrorType::WriteTimedout => Failure::WriteTimeout,
        ErrorType::ConnectTimedout => Failure::ConnectTimeout,
        ErrorType::ReadError | ErrorType::WriteError => Failure::Reset,
        // Pingora does not distinguish a malformed field from a malformed status line.
        ErrorType::InvalidHTTPHeader => Failure::ResponseHeadMalformed,
        _ => Failure::Closed,
    };
    failure.into()
}

#[cfg(test)]
mod tests {
    use pingora::prelude::OrErr;

    use super::*;
    use crate::failure::Detail;

    #[test]
    fn our_connect_error_is_found_beneath_pingoras() {
        let detail = Some(Detail::Reason("there is no such file"));
        let ours = AttemptError { failure: Failure::ConnectUnreachable, detail };
        let error = Err::<(), _>(ours).or_err(ErrorType::ConnectError, "not connected").expect_err("an error");
        let error = Error::because(ErrorType::InternalError, "Fail to connect", error);
        assert_eq!(failed(&error), ours);
    }
}
