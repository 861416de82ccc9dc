//! The bearer token, compared in constant time.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;

use super::api::Problem;
use super::{Admin, Peer};
use crate::change::Author;
use crate::config::Secret;
use crate::message::authority::without_port;

/// Accepts requests with a valid token, or all requests if none is configured, and records who made them. The read
/// token is refused for methods that change anything.
pub(super) async fn demand_token(State(admin): State<Arc<Admin>>, mut request: Request, next: Next) -> Response {
    let from = request.extensions().get::<Peer>().map(|Peer(address)| *address);
    let by = if admin.token.is_some() { "admin" } else { "local" };
    request.extensions_mut().insert(Author { by, from });
    let Some(token) = &admin.token else { return without_token(request, next).await };
    let is = |presented: &[u8], token: &Secret| bool::from(presented.ct_eq(token.expose()));
    match bearer(request.headers().get(header::AUTHORIZATION)) {
        None => {
            let problem =
                Problem::new(StatusCode::UNAUTHORIZED, "send the admin token as \"Authorization: Bearer TOKEN\"");
            ([(header::WWW_AUTHENTICATE, "Bearer")], problem).into_response()
        }
        Some(presented) if is(presented, token) => next.run(request).await,
        Some(presented) if admin.read_token.as_ref().is_some_and(|token| is(presented, token)) => {
            match *request.method() {
                Method::GET | Method::HEAD => next.run(request).await,
                _ => {
                    Problem::new(StatusCode::FORBIDDEN, "this token may only read: send the one of [admin] token_file")
                        .into_response()
                }
            }
        }
        Some(_) => Problem::new(StatusCode::FORBIDDEN, "this is not the admin token").into_response(),
    }
}

async fn without_token(request: Request, next: Next) -> Response {
    if is_from_here(request.headers()) {
        return next.run(request).await;
    }
    let detail =
        "without a token only requests to a loopback address or localhost, and from no foreign page, are served";
    Problem::new(StatusCode::FORBIDDEN, detail).into_response()
}

/// Without a token, local programs are trusted, but not web pages in local browsers: a page can send requests to a
/// loopback address, directly or by a name that it makes resolve there (DNS rebinding).
fn is_from_here(headers: &HeaderMap) -> bool {
    let field = |name| headers.get(name).map(HeaderValue::as_bytes);
    let host = field(header::HOST);
    let is_own_page = match (field(header::ORIGIN), host) {
        (Some(origin), Some(host)) => origin.strip_prefix(b"http://") == Some(host),
        (Some(_), None) => false,
        (None, _) => true,
    };
    is_own_page && host.is_none_or(is_this_machine)
}

/// Whether a `Host` is an address or `localhost`, which cannot be made to resolve elsewhere.
fn is_this_machine(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let name = without_port(host);
    let address = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

/// The token of an `Authorization` field (RFC 6750 §2.1).
fn bearer(field: Option<&HeaderValue>) -> Option<&[u8]> {
    let (scheme, token) = field?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_must_be_ip_addresses_or_localhost() {
        for host in ["127.0.0.1:8889", "localhost", "LOCALHOST:1", "[::1]:8889", "10.0.0.1"] {
            assert!(is_this_machine(host.as_bytes()), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:8889", "", "127.0.0.1.evil.example"] {
            assert!(!is_this_machine(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn only_the_bearer_scheme_is_accepted() {
        for (field, expected) in [
            ("Bearer abc", Some(&b"abc"[..])),
            ("bearer  abc ", Some(b"abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer ", Some(b"")),
            ("", None),
        ] {
            let field = HeaderValue::from_static(field);
            assert_eq!(bearer(Some(&field)), expected, "{field:?}");
        }
    }
}
