//! The routes of the application, and the layers of each.

mod accounts;
mod home;
mod media;
mod posts;
mod service;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::FormRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Query, Request};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::Redirect;
use axum::routing::{get, post};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;
use tower_http::catch_panic::CatchPanicLayer;

use crate::error::Error;
use crate::{App, layers, sessions};

pub fn router(app: Arc<App>) -> Router {
    let pages = Router::new()
        .route("/", get(home::show))
        .route("/accounts/signup/", get(accounts::signup_form).post(accounts::signup))
        .route("/accounts/login/", get(accounts::login_form).post(accounts::login))
        .route("/accounts/logout/", post(accounts::logout))
        .route("/accounts/logs/", get(accounts::history))
        .route(
            "/posts/",
            get(posts::list).post(posts::create).layer(DefaultBodyLimit::max(posts::body_limit(&app.settings))),
        )
        .layer(from_fn_with_state(Arc::clone(&app), sessions::keep));
    let slashes = SLASHED.iter().fold(Router::new(), |router, path| {
        router.route(path.trim_end_matches('/'), get(|| async { Redirect::permanent(path) }))
    });
    Router::new()
        .merge(pages)
        .merge(slashes)
        .route("/api/hello/", get(home::hello))
        .route("/media/{name}", get(media::show))
        .route("/static/{name}", get(service::asset))
        .route("/favicon.ico", get(service::favicon))
        .route("/robots.txt", get(service::robots))
        .route("/healthz", get(service::alive))
        .route("/readyz", get(service::ready))
        .route("/metrics", get(service::metrics))
        .fallback(layers::nothing_here)
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .layer(from_fn(layers::same_site))
        .layer(from_fn(layers::own_refusals))
        .layer(from_fn_with_state(Arc::clone(&app), layers::deadline))
        .layer(CatchPanicLayer::custom(layers::panicked))
        .layer(from_fn_with_state(Arc::clone(&app), layers::observe))
        .with_state(app)
}

/// The fields of a posted form. Fields that may be missing need a default.
struct Form<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Form<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        match axum::Form::from_request(request, state).await {
            Ok(axum::Form(fields)) => Ok(Self(fields)),
            Err(FormRejection::InvalidFormContentType(_)) => Err(Error::UnsupportedBody),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(Error::TooLarge),
            Err(_) => Err(Error::BadRequest),
        }
    }
}

/// The query string. A malformed one counts as missing: a broken link still leads to its page.
struct Params<T>(T);

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(Query::try_from_uri(&parts.uri).map(|Query(params)| params).unwrap_or_default()))
    }
}

/// A path of this site from a form or link, for a redirect; anything else is replaced by the home page.
fn local(next: &str) -> &str {
    let local = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains('\\')
        && next.bytes().all(|byte| byte.is_ascii_graphic());
    if local { next } else { "/" }
}

/// Paths that are redirected to if their last slash is missing.
const SLASHED: [&str; 5] = ["/accounts/signup/", "/accounts/login/", "/accounts/logs/", "/posts/", "/api/hello/"];
/// Limit on a form without a picture, in bytes.
const MAX_FORM_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_redirects_stay_on_this_site() {
        assert_eq!(local("/posts/?after=1.2"), "/posts/?after=1.2");
        for elsewhere in
            ["https://evil.example/", "//evil.example", "/\\evil.example", "", "posts", "/a\r\nb", "/\t/evil"]
        {
            assert_eq!(local(elsewhere), "/", "{elsewhere:?}");
        }
    }
}
