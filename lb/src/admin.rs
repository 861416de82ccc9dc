//! The admin listener: the API of `docs/admin-api.md`, metrics, and the endpoints for liveness and readiness.

mod api;
mod auth;
mod view;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use axum::routing::{get, patch, post};
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock;
use crate::config::Secret;
use crate::connection_limit::ConnectionLimit;
use crate::control::Control;
use crate::shutdown::Shutdown;

const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the end waits for requests.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
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

/// Serves until `stop` resolves, and until the requests that have begun by then are answered, for at most
/// [`FINISH_TIMEOUT`]. If dropped, it ends them.
pub(crate) async fn serve(listener: &TcpListener, admin: Arc<Admin>, stop: impl Future<Output = ()>) {
    let control = Arc::clone(&admin.control);
    let router = router(admin);
    let stopping = watch::Sender::new(false);
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        // Those that have ended.
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) => {
                let service = TowerToHyperService::new(router.clone().layer(Extension(Peer(peer))));
                connections.spawn(serve_connection(stream, service, stopping.subscribe()));
            }
            Err(e) => tokio::time::sleep(control.accept_failed(&e, clock::now())).await,
        }
    }
    stopping.send_replace(true);
    let ended = async { while connections.join_next().await.is_some() {} };
    // What takes longer is cut off with the set.
    let _ = tokio::time::timeout(FINISH_TIMEOUT, ended).await;
}

/// Serves one connection; once `stopping` is true, up to the end of its current request.
async fn serve_connection(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let stopped = async {
        // An error would mean that nobody accepts any more either.
        let _ = stopping.wait_for(|&is_stopping| is_stopping).await;
    };
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = served {
        tracing::debug!("an admin connection ended badly: {e}");
    }
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
