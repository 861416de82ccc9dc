//! What an error of Pingora's means in the table of failures, for probes.

use pingora::prelude::{Error, ErrorType};

use crate::failure::{AttemptError, Failure};

/// How an exchange with a backend failed before the head of its response had come.
pub(crate) fn failed(error: &Error) -> AttemptError {
    // The connection is made by us, and Pingora passes on what we say of it.
    if let Some(failed) = error.root_cause().downcast_ref() {
        return *failed;
    }
    let failure = match error.etype() {
        ErrorType::ReadTimedout => Failure::ResponseTimeout,
        ErrorType::WriteTimedout => Failure::WriteTimeout,
        ErrorType::ConnectTimedout => Failure::ConnectTimeout,
        ErrorType::ReadError | ErrorType::WriteError => Failure::Reset,
        // Pingora does not tell a malformed field from a malformed status line.
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
