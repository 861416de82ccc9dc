//! Endpoints for machines: health, readiness, metrics, style sheet and icons.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use http::{StatusCode, Uri, header};

use crate::config::Colour;
use crate::data::Readiness;
use crate::error::{Error, StoreError};
use crate::layers::Client;
use crate::page::{self, STYLE};
use crate::sessions::Reachability;
use crate::{App, health};

/// Whether the process is alive and not about to stop, for balancers that check nothing else. Independent of the
/// stores: a restart would not repair them.
pub async fn alive(State(app): State<Arc<App>>) -> Response {
    if app.is_leaving() { stopping() } else { "ok\n".into_response() }
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response()
}

/// Whether this instance should get requests: not while it stops, and not while a store is unreachable that another
/// instance reaches. If no instance reaches a store, all stay ready, so that pages without it still work. The same
/// holds for a store that is partially unreachable or read-only.
///
/// With `?alone`, used by its peers, it reports only whether it reaches its own stores. So an instance leaves only
/// after it has heard of another one that is well.
pub async fn ready(State(app): State<Arc<App>>, uri: Uri) -> Response {
    if app.is_leaving() {
        return stopping();
    }
    let (sessions, data, media) = (Arc::clone(&app.sessions), Arc::clone(&app.data), Arc::clone(&app.media));
    let (sessions, data, media) = tokio::join!(
        within(async move { sessions.reach().await }),
        within(async move { data.ready().await }),
        within(async move { media.ready().await }),
    );
    let mut out_of_reach = Vec::new();
    let errors =
        [("sessions", sessions.as_ref().err()), ("data", data.as_ref().err()), ("media", media.as_ref().err())];
    for (store, error) in errors {
        if let Some(error) = error {
            tracing::warn!(store, %error, "the store of {store} cannot be reached");
            out_of_reach.push(store);
        }
    }
    let out_of_reach = out_of_reach.join(", ");
    if out_of_reach.is_empty() {
        let mut body = "ready".to_owned();
        if let Ok(Reachability::Partial(part)) = sessions {
            tracing::warn!(part, "a part of the sessions cannot be reached: {part}");
            body += &format!(", but for some sessions: {part}");
        }
        if let Ok(Readiness::ReadsOnly) = data {
            tracing::warn!(store = "data", "the data store accepts no writes");
            body += "; reads only: data";
        }
        return (body + "\n").into_response();
    }
    if uri.query() == Some("alone") || health::any_is_well(&app.settings.peers, PEERS_TIMEOUT).await {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("out of reach: {out_of_reach}\n")).into_response();
    }
    format!("out of reach: {out_of_reach}; and no other instance is known to do better\n").into_response()
}

/// The result of `ask`, or an error after a time limit. The operation continues: a connection that is being established
/// is then available to the next request.
async fn within<T: Send + 'static>(
    asked: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::time::timeout(STORES_TIMEOUT, tokio::spawn(asked)).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => Err(StoreError::unavailable(error)),
        Err(_) => Err(StoreError::unavailable("no answer in time")),
    }
}

/// For Prometheus, which scrapes instances directly. Requests through the balancer are refused.
pub async fn metrics(State(app): State<Arc<App>>, client: Client) -> Result<Response, Error> {
    if client.forwarded {
        return Err(Error::NotFound);
    }
    let text = app.metrics.render().map_err(Error::internal)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response())
}

pub async fn asset(Path(name): Path<String>) -> Result<Response, Error> {
    let for_ever = (header::CACHE_CONTROL, "public, max-age=31536000, immutable");
    let path = format!("/static/{name}");
    if path == STYLE.path {
        return Ok(([(header::CONTENT_TYPE, "text/css; charset=utf-8"), for_ever], STYLE.content).into_response());
    }
    if path.starts_with("/static/style-") && path.ends_with(".css") {
        // From a page of another version, during a rolling update: this style sheet is better than none.
        return Ok(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE.content).into_response());
    }
    let colour = name
        .strip_prefix("icon-")
        .and_then(|name| name.strip_suffix(".svg"))
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| Colour::COLOURS.get(number.checked_sub(1)?));
    let colour = colour.ok_or(Error::NotFound)?;
    let cached = (header::CACHE_CONTROL, "public, max-age=86400");
    Ok(([(header::CONTENT_TYPE, "image/svg+xml"), cached], page::icon(colour)).into_response())
}

pub async fn favicon(State(app): State<Arc<App>>) -> Redirect {
    Redirect::to(&page::icon_path(&app.instance))
}

pub async fn robots() -> &'static str {
    "User-agent: *\nDisallow: /accounts/\n"
}

/// Together less than the second that a probe usually allows: a response that is too late counts as a failure.
const STORES_TIMEOUT: Duration = Duration::from_millis(500);
const PEERS_TIMEOUT: Duration = Duration::from_millis(300);
