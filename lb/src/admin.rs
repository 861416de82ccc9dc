//! The admin listener: the API of `docs/admin-api.md`, metrics, and the endpoints for liveness and readiness.

mod api;
mod auth;
mod view;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use axum::routing::{get, patch, post};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;

use crate::config::Secret;
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::shutdown::Shutdown;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What the handlers work on.
pub struct Admin {
    pub control: Arc<Control>,
    pub client_limit: Arc<ConnectionLimit>,
    pub token: Option<Secret>,
    /// A token that permits reading only.
    pub read_token: Option<Secret>,
    pub shutdown: Shutdown,
}

/// The peer of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub SocketAddr);

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, admin: Arc<Admin>) {
    let router = router(admin);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                pause_after(&e).await;
                continue;
            }
        };
        let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer))));
        tokio::spawn(async move {
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            if let Err(e) = http.serve_connection(TokioIo::new(stream), service).await {
                tracing::debug!("an admin connection ended badly: {e}");
            }
        });
    }
}

async fn pause_after(error: &io::Error) {
    tracing::warn!("an admin connection could not be accepted: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

fn router(admin: Arc<Admin>) -> Router {
    Router::new()
        .route("/admin/algorithm", get(api::algorithms).post(api::switch_algorithm))
        .route("/admin/pools", get(api::pools))
        .route("/admin/pools/{pool}", get(api::pool))
        .route("/admin/pools/{pool}/backends", post(api::add_backend))
        .route("/admin/pools/{pool}/backends/{address}", patch(api::change_backend).delete(api::remove_backend))
        .route("/admin/pools/{pool}/backends/{address}/kill", post(api::kill))
        .route("/admin/reload", post(api::reload))
        .route("/admin/reset", post(api::reset))
        .route("/admin/changes", get(api::changes))
        .route("/admin/changes/{id}/undo", post(api::undo))
        .route("/admin/drift", get(api::drift))
        .route("/admin/config", get(api::config))
        .route("/metrics", get(api::metrics))
        .method_not_allowed_fallback(api::method_not_allowed)
        .fallback(api::not_found)
        .layer(from_fn_with_state(Arc::clone(&admin), auth::demand_token))
        .route("/healthz", get(api::healthz))
        .route("/readyz", get(api::readyz))
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(admin)
}
