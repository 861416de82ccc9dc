//! What is there for machines: health, readiness, metrics, style sheet and icons.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Redirect, Response},
};
use http::{StatusCode, header};
use tower_sessions_core::session::Id;

use crate::{
    App,
    config::Tint,
    error::Error,
    layers::Client,
    page::{self, STYLE},
    sessions::SessionStore,
};

/// The process is alive, and not about to end: for balancers that ask nothing else. Says nothing about the stores:
/// restarting this would not mend them.
pub async fn alive(State(app): State<Arc<App>>) -> Response {
    if app.is_leaving() { stopping() } else { "ok\n".into_response() }
}

fn stopping() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response()
}

/// Whether requests should come here: not while stopping, nor while a store is out of reach.
pub async fn ready(State(app): State<Arc<App>>) -> Response {
    if app.is_leaving() {
        return stopping();
    }
    let id = Id::default();
    let stores = tokio::time::timeout(READY_WITHIN, async {
        let (sessions, data, media) = tokio::join!(app.sessions.load(&id), app.data.ready(), app.media.ready());
        [
            ("sessions", sessions.err().map(|error| error.to_string())),
            ("data", data.err().map(|error| error.to_string())),
            ("media", media.err().map(|error| error.to_string())),
        ]
    })
    .await;
    let Ok(stores) = stores else {
        return (StatusCode::SERVICE_UNAVAILABLE, "stores do not answer in time\n").into_response();
    };
    let mut out_of_reach = Vec::new();
    for (store, error) in stores {
        if let Some(error) = error {
            tracing::warn!(store, error, "not ready: the store of {store} cannot be reached");
            out_of_reach.push(store);
        }
    }
    if out_of_reach.is_empty() {
        "ready\n".into_response()
    } else {
        let body = format!("out of reach: {}\n", out_of_reach.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
    }
}

/// For Prometheus, which asks instances directly. What the balancer passes on comes from elsewhere.
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
        // From a page of another version, while instances are being replaced: better this sheet than none.
        return Ok(([(header::CONTENT_TYPE, "text/css; charset=utf-8")], STYLE.content).into_response());
    }
    let colour = name
        .strip_prefix("icon-")
        .and_then(|name| name.strip_suffix(".svg"))
        .and_then(|number| number.parse::<usize>().ok())
        .and_then(|number| Tint::COLOURS.get(number.checked_sub(1)?));
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

const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(3);
