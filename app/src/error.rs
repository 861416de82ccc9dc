//! The ways a request is refused or fails, and what each becomes: a status and a fixed sentence.
//!
//! Handlers return [`Error`]; `layers` logs its cause once, with the request's id, and renders the page (or the
//! JSON below `/api/`). What the client reads never comes from the cause.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It may succeed later: unreachable, busy, out of space.
    #[error("the store cannot be reached: {0}")]
    Unavailable(#[source] Cause),
    /// It returned something that this program cannot have written.
    #[error("the store holds something unreadable: {0}")]
    Corrupt(#[source] Cause),
    /// It refuses a value permanently. The value should have been refused earlier.
    #[error("the store does not take the value: {0}")]
    Unfit(#[source] Cause),
}

impl StoreError {
    pub fn unavailable(cause: impl Into<Cause>) -> Self {
        Self::Unavailable(cause.into())
    }

    pub fn corrupt(cause: impl Into<Cause>) -> Self {
        Self::Corrupt(cause.into())
    }

    pub fn unfit(cause: impl Into<Cause>) -> Self {
        Self::Unfit(cause.into())
    }
}

impl From<tower_sessions_core::session::Error> for StoreError {
    fn from(error: tower_sessions_core::session::Error) -> Self {
        use tower_sessions_core::{session, session_store};
        match error {
            session::Error::Store(session_store::Error::Backend(_)) => Self::unavailable(error),
            _ => Self::corrupt(error),
        }
    }
}

/// Why a request failed or was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is nothing at this address")]
    NotFound,
    #[error("this address does not take the method")]
    MethodNotAllowed,
    #[error("the form was sent from another site")]
    CrossSite,
    #[error("the request cannot be read")]
    BadRequest,
    #[error("the request body is too large")]
    TooLarge,
    #[error("the body is not a form")]
    UnsupportedBody,
    #[error("the page needs someone logged in")]
    LoginNeeded { next: String },
    #[error("too much to do")]
    Busy,
    #[error("the request took too long")]
    TimedOut,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("unexpected: {0}")]
    Internal(#[source] Cause),
}

impl Error {
    pub fn internal(cause: impl Into<Cause>) -> Self {
        Self::Internal(cause.into())
    }

    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::CrossSite => StatusCode::FORBIDDEN,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedBody => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::LoginNeeded { .. } => StatusCode::SEE_OTHER,
            Self::Busy | Self::TimedOut | Self::Store(StoreError::Unavailable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Store(StoreError::Corrupt(_) | StoreError::Unfit(_)) | Self::Internal(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// The message for the client: a heading, and one or two sentences about what to do.
    fn sentences(&self) -> (&'static str, &'static str) {
        match self {
            Self::NotFound => {
                ("Nothing here", "There is no page at this address. It may have moved, or the link has a slip.")
            }
            Self::MethodNotAllowed => (
                "Not that way",
                "This address exists, but it cannot be used like that. Go back and use the form on the page.",
            ),
            Self::CrossSite => (
                "Sent from elsewhere",
                "This form did not come from this site, so nothing was done. Open the page here and send it again.",
            ),
            Self::BadRequest => {
                ("Not understood", "The request could not be read. Go back, reload the page and try again.")
            }
            Self::TooLarge => ("Too large", "What you sent is larger than this site takes. Go back and send less."),
            Self::UnsupportedBody => ("Not a form", "This address takes a form as browsers send it."),
            Self::LoginNeeded { .. } => ("Log in first", "This page is yours alone: log in to see it."),
            Self::Busy => {
                ("Very busy", "There is more to do than this site can manage just now. Try again in a few seconds.")
            }
            Self::TimedOut => {
                ("That took too long", "The request was not finished in time. Try again; nothing is done twice.")
            }
            Self::Store(StoreError::Unavailable(_)) => (
                "Storage is out of reach",
                "Your data is safe, but it cannot be reached just now. Try again in a few seconds.",
            ),
            Self::Store(StoreError::Corrupt(_) | StoreError::Unfit(_)) | Self::Internal(_) => {
                ("Something broke", "This is our fault, not yours. It has been noted with the number below.")
            }
        }
    }
}

/// A refusal in a response: what `layers` needs to render it, stored in the response's extensions.
#[derive(Debug, Clone)]
pub struct Problem {
    pub status: StatusCode,
    pub heading: &'static str,
    pub sentence: &'static str,
    /// Only for the log, and only if somebody should investigate.
    pub cause: Option<String>,
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = status.into_response();
        if let Self::LoginNeeded { next } = &self {
            let location = format!("/accounts/login/?next={}", crate::page::in_query(next));
            if let Ok(location) = HeaderValue::try_from(location) {
                response.headers_mut().insert(header::LOCATION, location);
            }
            return response;
        }
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("3"));
        }
        let (heading, sentence) = self.sentences();
        let cause = status.is_server_error().then(|| self.to_string());
        response.extensions_mut().insert(Problem { status, heading, sentence, cause });
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_out_of_reach_says_when_to_try_again() {
        let response = Error::from(StoreError::unavailable("disk full")).into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn the_cause_is_logged_and_hidden_from_the_client() {
        let response = Error::internal("secret detail").into_response();
        let problem = response.extensions().get::<Problem>().unwrap();
        assert!(!problem.sentence.contains("secret"));
        assert!(problem.cause.as_ref().unwrap().contains("secret detail"));
    }
}
