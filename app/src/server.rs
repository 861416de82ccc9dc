//! Connections: accepts them, gives each request its peer's address, bounds slow clients and stops gracefully.
//!
//! This stands in place of `axum::serve`, which knows neither a header timeout nor a limit of connections.

mod stalled;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt;

use self::stalled::StallTimeout;
use crate::metrics::GaugeGuard;
use crate::{App, routes};

/// Whether an instance should stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    No,
    /// After the balancers had `shutdown_delay` to notice it.
    Announced,
    /// Without that delay.
    Now,
}

/// Answers what arrives at `listener` until it should stop, or `stop` is dropped. Then in this order: `/readyz` and
/// `/healthz` say that it is stopping, for `shutdown_delay`, while all goes on being answered, each answer the last of
/// its connection; nothing more is accepted; what is in flight is finished. Returns at the deadline at the latest.
pub async fn run(app: Arc<App>, listener: TcpListener, mut stop: watch::Receiver<Stop>) {
    let router = routes::router(Arc::clone(&app));
    let connections = GracefulShutdown::new();
    let permits = Arc::new(Semaphore::new(app.settings.max_connections));
    let mut stopping = std::pin::pin!(announce(&app, &mut stop));
    loop {
        let accepted = async {
            // First a permit: clients that cannot be served yet wait in the listen queue.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = &mut stopping => break,
            accepted = accepted => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = connections.watch(connection(&app, &router, stream, peer));
                let held = GaugeGuard::new(&app.metrics.connections);
                tokio::spawn(async move {
                    let _held = (permit, held);
                    if let Err(error) = connection.await {
                        tracing::debug!(%peer, %error, "connection ended early");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection, trying again");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tracing::info!("stopping: finishing what is in flight");
    let deadline = Instant::now() + app.settings.shutdown_deadline;
    if timeout_at(deadline, connections.shutdown()).await.is_err() {
        tracing::warn!("stopping: the deadline has passed, requests are cut off");
    }
    app.history.finish(deadline).await;
}

/// Waits for a stop, becomes unready, and gives the balancers time to notice.
async fn announce(app: &App, stop: &mut watch::Receiver<Stop>) {
    let asked = stop.wait_for(|stop| *stop != Stop::No).await.map_or(Stop::Now, |stop| *stop);
    app.leave();
    let delay = app.settings.shutdown_delay;
    if asked == Stop::Announced && !delay.is_zero() {
        tracing::info!(
            "stopping: /readyz says so for {} before connections are refused",
            humantime::format_duration(delay)
        );
        let _ = tokio::time::timeout(delay, stop.wait_for(|stop| *stop == Stop::Now)).await;
    }
}

fn connection(
    app: &App,
    router: &Router,
    stream: TcpStream,
    peer: SocketAddr,
) -> http1::Connection<
    TokioIo<StallTimeout<TcpStream>>,
    impl hyper::service::HttpService<Incoming, ResBody = axum::body::Body, Error = std::convert::Infallible, Future: Send>
    + use<>,
> {
    // Responses are written in one piece; waiting to fill packets would only delay them.
    let _ = stream.set_nodelay(true);
    let router = router.clone();
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.settings.header_timeout)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(StallTimeout::new(stream, app.settings.write_timeout)), service)
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Limit on a request's line and headers, in bytes; also the size of reads.
const MAX_HEAD_BYTES: usize = 64 * 1024;
