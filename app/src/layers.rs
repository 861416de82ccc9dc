//! Middleware for every request and response: the client's identity, the same-site check, time limits, logging,
//! metrics, and error pages.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::json;
use tracing::Instrument;
use uuid::Uuid;

use crate::config::{SecureCookies, Settings};
use crate::error::{Error, Problem};
use crate::metrics::GaugeGuard;
use crate::{App, page, retry};

/// The client, as far as the connection and trusted proxies tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    pub address: IpAddr,
    /// Whether the browser's connection uses TLS.
    pub tls: bool,
    /// Whether a proxy forwarded the request.
    pub forwarded: bool,
}

impl Client {
    /// The client is the rightmost address in X-Forwarded-For that is not a trusted proxy, as with nginx's
    /// `real_ip_recursive`: the addresses left of it could be invented by the client. Forwarding headers are used only
    /// if `peer` is a trusted proxy.
    pub fn new(peer: IpAddr, headers: &HeaderMap, settings: &Settings) -> Self {
        let is_trusted = |address: IpAddr| settings.trusted_proxies.iter().any(|network| network.contains(&address));
        let mut address = peer.to_canonical();
        // From the nearest proxy to the client. A malformed element ends the chain, since the rest has an unknown
        // author.
        let mut named = elements(headers, X_FORWARDED_FOR).into_iter().rev().map_while(address_in);
        let mut proxies = 0;
        while is_trusted(address)
            && let Some(next) = named.next()
        {
            (address, proxies) = (next, proxies + 1);
        }
        let tls = match settings.secure_cookies {
            SecureCookies::Always => true,
            SecureCookies::Never => false,
            SecureCookies::Auto if is_trusted(peer.to_canonical()) => {
                // One per proxy, or a single one that all proxies pass on.
                let protocols = elements(headers, X_FORWARDED_PROTO);
                let clients = protocols.iter().rev().take(proxies.max(1)).next_back();
                clients.is_some_and(|protocol| protocol.eq_ignore_ascii_case("https"))
            }
            SecureCookies::Auto => false,
        };
        let forwarded = FORWARDING.iter().any(|name| headers.contains_key(*name));
        Self { address, tls, forwarded }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Error> {
        parts.extensions.get().copied().ok_or_else(|| Error::internal("no layer has said who asks"))
    }
}

/// The id that identifies a request in the logs of balancer and application.
#[derive(Debug, Clone)]
struct RequestId(String);

impl RequestId {
    /// The id from the proxy, if it is valid, else a new one. The rules for validity are Evenkeel's.
    fn new(headers: &HeaderMap) -> Self {
        let fit = |id: &&str| {
            (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&b))
        };
        let given = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).filter(fit);
        Self(given.map_or_else(|| Uuid::now_v7().simple().to_string(), str::to_owned))
    }
}

/// The outermost layer: assigns the request id, counts and times the request, renders refusals, writes the access log
/// line.
pub async fn observe(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let _held = GaugeGuard::new(&app.metrics.requests_in_flight);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let peer = peer.unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let client = Client::new(peer, request.headers(), &app.settings);
    let id = RequestId::new(request.headers());
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.as_deref().unwrap_or("unmatched");
    request.extensions_mut().insert(client);

    let span = tracing::info_span!("request", id = %id.0);
    let mut response = next.run(request).instrument(span).await;

    let took = started.elapsed();
    let problem = response.extensions_mut().remove::<Problem>();
    let cause = problem.as_ref().and_then(|problem| problem.cause.clone());
    if let Some(problem) = problem {
        response = render(&app, &problem, &id, &path, response);
    }
    guard(response.headers_mut());
    response.headers_mut().insert("x-served-by", app.name_header.clone());
    if let Ok(id) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(X_REQUEST_ID, id);
    }
    if app.is_leaving() {
        // Lets clients reconnect elsewhere, instead of losing a request when the connection ends.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status();
    app.metrics.answered(route, &method, status, took);
    log(&id, &method, &path, route, status, took, client, cause.as_deref());
    response
}

#[expect(clippy::too_many_arguments, reason = "one line of the access log")]
fn log(
    id: &RequestId,
    method: &Method,
    path: &str,
    route: &str,
    status: StatusCode,
    took: Duration,
    client: Client,
    cause: Option<&str>,
) {
    let (id, status, client) = (&id.0, status.as_u16(), client.address);
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match cause {
        Some(cause) if status == 500 => {
            tracing::error!(id, %method, path, status, took_ms, %client, cause, "{method} {path} {status}: {cause}");
        }
        Some(cause) => {
            tracing::warn!(id, %method, path, status, took_ms, %client, cause, "{method} {path} {status}: {cause}");
        }
        // Requested every second by balancers and scrapers; not logged while they succeed.
        None if matches!(route, "/healthz" | "/readyz" | "/metrics") => {
            tracing::debug!(id, %method, path, status, took_ms, %client, "{method} {path} {status}");
        }
        None => tracing::info!(id, %method, path, status, took_ms, %client, "{method} {path} {status}"),
    }
}

/// Renders a refusal as a page, or as JSON for programs. Headers set before are kept.
fn render(app: &App, problem: &Problem, id: &RequestId, path: &str, refused: Response) -> Response {
    let mut response = if path.starts_with("/api/") {
        let body = json!({
            "type": "about:blank", "title": problem.heading, "detail": problem.sentence,
            "status": problem.status.as_u16(), "request_id": id.0,
        });
        let mut response = (problem.status, Json(body)).into_response();
        let media_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
        response
    } else {
        let number = problem.status.is_server_error().then_some(id.0.as_str());
        let page = page::refusal(&app.instance, problem.heading, problem.sentence, number);
        (problem.status, page).into_response()
    };
    for name in [header::ALLOW, header::RETRY_AFTER, header::SET_COOKIE, header::WWW_AUTHENTICATE] {
        for value in refused.headers().get_all(&name) {
            response.headers_mut().append(name.clone(), value.clone());
        }
    }
    response
}

/// Turns a panic into a refusal, with its message for the log.
pub fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let cause = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
        .unwrap_or_default();
    Error::internal(format!("panicked: {cause}")).into_response()
}

/// Sets headers against framing, content sniffing and scripts, unless the response has its own.
fn guard(headers: &mut HeaderMap) {
    const POLICY: HeaderValue = HeaderValue::from_static(
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    );
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(POLICY);
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    headers.entry(header::X_FRAME_OPTIONS).or_insert(HeaderValue::from_static("DENY"));
    headers.entry(header::REFERRER_POLICY).or_insert(HeaderValue::from_static("same-origin"));
    headers
        .entry(HeaderName::from_static("cross-origin-opener-policy"))
        .or_insert(HeaderValue::from_static("same-origin"));
    headers
        .entry(HeaderName::from_static("cross-origin-resource-policy"))
        .or_insert(HeaderValue::from_static("same-origin"));
    headers
        .entry(HeaderName::from_static("permissions-policy"))
        .or_insert(HeaderValue::from_static("camera=(), geolocation=(), microphone=()"));
    // Pages differ between visitors and between instances.
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Ends a request that exceeds its time limit, and limits the time of its store operations.
pub async fn deadline(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let posts_picture = request.method() == Method::POST && request.uri().path() == "/posts/";
    let limit = if posts_picture { app.settings.upload_timeout } else { app.settings.request_timeout };
    match tokio::time::timeout(limit, retry::of_one_request(next.run(request))).await {
        Ok(response) => response,
        Err(_) => Error::TimedOut.into_response(),
    }
}

/// Refuses what changes something and was not sent by a page of this site.
///
/// Browsers say where a request comes from: `Sec-Fetch-Site` over TLS and on localhost, `Origin` with every form
/// that is posted. A page elsewhere can forge neither, so no token has to travel in the forms, none can go stale,
/// and whoever says neither is refused.
pub async fn same_site(request: Request, next: Next) -> Response {
    let safe = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    if safe || is_from_here(request.headers(), request.uri().authority().map(|a| a.as_str())) {
        next.run(request).await
    } else {
        Error::CrossSite.into_response()
    }
}

fn is_from_here(headers: &HeaderMap, authority: Option<&str>) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin" || site == "none";
    }
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST).or(authority)) else {
        return false;
    };
    origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host))
}

/// The elements of a list header, of all its lines. A line that is not text counts as one invalid element.
fn elements<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers.get_all(name).iter().flat_map(|line| line.to_str().unwrap_or_default().split(',')).map(str::trim).collect()
}

/// The address in an element of X-Forwarded-For, which may have a port.
fn address_in(element: &str) -> Option<IpAddr> {
    let bracketed = || element.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let with_port = || element.parse::<SocketAddr>().map(|address| address.ip()).ok();
    let address: Option<IpAddr> = element.parse().ok().or_else(with_port).or_else(bracketed);
    address.map(|address| address.to_canonical())
}

/// Responds to a request for an unknown path.
pub async fn nothing_here() -> Error {
    Error::NotFound
}

/// Turns refusals by the router into ours.
pub async fn own_refusals(request: Request<Body>, next: Next) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::METHOD_NOT_ALLOWED && response.extensions().get::<Problem>().is_none() {
        let mut refusal = Error::MethodNotAllowed.into_response();
        if let Some(allow) = response.headers().get(header::ALLOW) {
            refusal.headers_mut().insert(header::ALLOW, allow.clone());
        }
        return refusal;
    }
    response
}

const X_FORWARDED_FOR: &str = "x-forwarded-for";
const X_FORWARDED_PROTO: &str = "x-forwarded-proto";
/// Any of these headers shows that a proxy forwarded the request.
const FORWARDING: [&str; 4] = [X_FORWARDED_FOR, "forwarded", "via", "x-real-ip"];
const X_REQUEST_ID: &str = "x-request-id";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_requests_from_this_site_may_change_anything() {
        for (expected, sent) in [
            (true, &[("sec-fetch-site", "same-origin")][..]),
            (true, &[("sec-fetch-site", "none")]),
            (false, &[("sec-fetch-site", "cross-site")]),
            (false, &[("sec-fetch-site", "same-site")]),
            (false, &[("sec-fetch-site", "cross-site"), ("origin", "http://a:1"), ("host", "a:1")]),
            (true, &[("origin", "http://a:1"), ("host", "a:1")]),
            (true, &[("origin", "https://Example.org"), ("host", "example.org")]),
            (false, &[("origin", "http://a:1"), ("host", "a:2")]),
            (false, &[("origin", "http://evil"), ("host", "a")]),
            (false, &[("origin", "null"), ("host", "a")]),
            (false, &[("host", "a")]),
            (false, &[]),
        ] {
            assert_eq!(is_from_here(&headers(sent), None), expected, "{sent:?}");
        }
    }

    #[test]
    fn forwarding_headers_are_believed_from_trusted_proxies_only() {
        let settings = Settings { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..Settings::default() };
        let sent = headers(&[("x-forwarded-for", "192.0.2.1, 10.0.0.8"), ("x-forwarded-proto", "https")]);
        let trusted = Client::new([10, 0, 0, 9].into(), &sent, &settings);
        assert_eq!(trusted, Client { address: [192, 0, 2, 1].into(), tls: true, forwarded: true });
        let stranger = Client::new([11, 0, 0, 9].into(), &sent, &settings);
        assert_eq!(stranger, Client { address: [11, 0, 0, 9].into(), tls: false, forwarded: true });
        let mapped: IpAddr = "::ffff:10.0.0.9".parse().unwrap();
        assert!(Client::new(mapped, &sent, &settings).tls);
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxys() {
        let networks = ["10.0.0.0/8", "2001:db8::/32"];
        let settings = Settings {
            trusted_proxies: networks.map(|network| network.parse().unwrap()).into(),
            ..Settings::default()
        };
        for (peer, lists, client) in [
            // The leftmost address was sent by the client itself.
            ("10.0.0.9", &["198.51.100.9, 192.0.2.1"][..], "192.0.2.1"),
            ("10.0.0.9", &["198.51.100.9, 192.0.2.1, 10.0.0.8"], "192.0.2.1"),
            ("10.0.0.9", &["198.51.100.9", "192.0.2.1", "10.0.0.8, 10.0.0.7"], "192.0.2.1"),
            ("::ffff:10.0.0.9", &["198.51.100.9, ::ffff:192.0.2.1"], "192.0.2.1"),
            ("2001:db8::1", &["198.51.100.9, [2620::7]:4711, 2001:db8::2"], "2620::7"),
            ("10.0.0.9", &["198.51.100.9, 192.0.2.1:4711"], "192.0.2.1"),
            // All are proxies: the farthest one is the client.
            ("10.0.0.9", &["10.0.0.7, 10.0.0.8"], "10.0.0.7"),
            ("10.0.0.9", &[], "10.0.0.9"),
            // The nearest valid address, never one beyond an invalid one.
            ("10.0.0.9", &["198.51.100.9, unknown"], "10.0.0.9"),
            ("10.0.0.9", &["198.51.100.9, , 10.0.0.8"], "10.0.0.8"),
            ("10.0.0.9", &["<script>"], "10.0.0.9"),
            ("192.0.2.2", &["198.51.100.9"], "192.0.2.2"),
        ] {
            let mut sent = HeaderMap::new();
            for list in lists {
                sent.append(X_FORWARDED_FOR, list.parse().unwrap());
            }
            let found = Client::new(peer.parse().unwrap(), &sent, &settings).address;
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {lists:?}");
        }
    }

    #[test]
    fn the_protocol_is_that_of_the_proxy_next_to_the_client() {
        let settings = Settings { trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()], ..Settings::default() };
        for (forwarded_for, protocols, tls) in [
            ("192.0.2.1", "https", true),
            ("192.0.2.1", "http", false),
            ("192.0.2.1", "https, http", false),
            ("192.0.2.1, 10.0.0.8", "https", true),
            ("192.0.2.1, 10.0.0.8", "https, http", true),
            ("192.0.2.1, 10.0.0.8", "https, http, http", false),
            ("192.0.2.1", "", false),
        ] {
            let sent = headers(&[("x-forwarded-for", forwarded_for), ("x-forwarded-proto", protocols)]);
            let found = Client::new([10, 0, 0, 9].into(), &sent, &settings).tls;
            assert_eq!(found, tls, "{forwarded_for} by {protocols:?}");
        }
    }

    #[test]
    fn requests_with_any_forwarding_field_count_as_proxied() {
        let settings = Settings::default();
        for name in ["x-forwarded-for", "forwarded", "via", "x-real-ip"] {
            assert!(Client::new([127, 0, 0, 1].into(), &headers(&[(name, "x")]), &settings).forwarded, "{name}");
        }
        assert!(!Client::new([127, 0, 0, 1].into(), &HeaderMap::new(), &settings).forwarded);
    }

    #[test]
    fn a_request_id_from_the_proxy_is_kept_if_valid() {
        let longest = "x".repeat(128);
        for id in ["0af7651916cd43dd", "1", "Root=1-67891233:a/b+c@d_e.f", &longest] {
            assert_eq!(RequestId::new(&headers(&[("x-request-id", id)])).0, id);
        }
        for odd in ["", "with space in it", "<b>", "a\"b", &"x".repeat(129)] {
            assert_ne!(RequestId::new(&headers(&[("x-request-id", odd)])).0, odd);
        }
    }
}
