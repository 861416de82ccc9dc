//! What an error of Pingora's means in the table of failures, for probes.

use std::io;

use pingora::prelude::{Error, ErrorType};

use crate::failure::Failure;

/// How an exchange with a backend failed before the head of its response had come.
pub fn failure(error: &Error) -> Failure {
    match error.etype() {
        ErrorType::ReadTimedout => Failure::ResponseTimeout,
        ErrorType::WriteTimedout => Failure::WriteTimeout,
        ErrorType::ConnectionClosed => Failure::Closed,
        ErrorType::ReadError | ErrorType::WriteError => Failure::Reset,
        // Pingora does not tell a malformed field from a malformed status line.
        ErrorType::InvalidHTTPHeader => Failure::ResponseHeadMalformed,
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Failure::ConnectTimeout,
        ErrorType::ConnectRefused => Failure::ConnectRefused,
        ErrorType::ConnectNoRoute => Failure::ConnectUnreachable,
        // Pingora puts a lack of ports, files and memory among these, by the system's error beneath.
        ErrorType::ConnectError | ErrorType::BindError | ErrorType::SocketError | ErrorType::InternalError => {
            io_error(error).map_or(Failure::OutOfResources, Failure::of_connecting)
        }
        _ => Failure::Closed,
    }
}

fn io_error(error: &Error) -> Option<&io::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error.root_cause());
    while let Some(here) = cause {
        if let Some(error) = here.downcast_ref() {
            return Some(error);
        }
        cause = here.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use pingora::prelude::OrErr;

    use super::*;

    #[test]
    fn a_lack_of_files_is_found_beneath_what_pingora_says() {
        for (errno, failure_here) in [
            (rustix::io::Errno::MFILE, Failure::OutOfResources),
            (rustix::io::Errno::ADDRNOTAVAIL, Failure::OutOfResources),
            (rustix::io::Errno::HOSTUNREACH, Failure::ConnectUnreachable),
        ] {
            let cause: Result<(), _> = Err(io::Error::from_raw_os_error(errno.raw_os_error()));
            let error = cause.or_err(ErrorType::SocketError, "failed to create socket").expect_err("an error");
            let error = Error::because(ErrorType::InternalError, "Fail to connect", error);
            assert_eq!(failure(&error), failure_here, "{errno:?}");
        }
    }
}
