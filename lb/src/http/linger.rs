//! Lingering close (RFC 9112 §9.6; nginx's `lingering_close`): closes our side, then reads and discards what the client
//! still sends. Closing at once would reset the connection, and a client that sends everything before it reads would
//! never see its response.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use super::stream::ClientStream;
use super::{Engine, h2};
use crate::clock::{sleep, timeout};

/// How long closing our side may take under TLS.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a stream's lingering close may last once the process stops.
const LINGERING_AT_STOP: Duration = Duration::from_secs(1);

pub async fn linger(engine: &Engine, client: &mut ClientStream) {
    let listener = engine.listener();
    // A stream has no connection permit of its own.
    let is_stream = client.is_stream();
    let lingering = async {
        let mut is_shut_down = false;
        let mut discard = |cx: &mut Context<'_>| {
            if !is_shut_down {
                is_shut_down = Pin::new(&mut *client).poll_shutdown(cx).is_ready();
            }
            client.poll_discard(cx)
        };
        while let Ok(Ok(1..)) = timeout(listener.lingering_timeout, poll_fn(&mut discard)).await {}
    };
    let stop = async {
        h2::stopping(engine).await;
        sleep(LINGERING_AT_STOP).await;
    };
    tokio::select! {
        biased;
        _ = timeout(listener.lingering_time, lingering) => {}
        () = engine.sheds_lingering(), if !is_stream => {}
        // The shutdown does not wait for connections in a lingering close, but an HTTP/2 connection waits for its
        // streams.
        () = stop, if is_stream => {}
    }
}
