//! The body of a form in parts, as its parser is given it: in pieces, and not many of them without a part to show for it.
//!
//! The parser keeps in memory what stands between the contents of parts (boundaries and headers) until it has the end of
//! it, and has no limit of its own for that.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

/// Bytes of a form.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Given to the parser. The rest is read and dropped: a browser shows the answer only once it has sent everything.
    pub parsed: usize,
    /// Read at all.
    pub read: usize,
}

/// What is known of a form under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that the parser was given and has made nothing of yet.
    pending: AtomicUsize,
    is_over: AtomicBool,
}

impl Progress {
    /// The parser has come to the begin of a part, or to some of its content.
    pub fn made(&self) {
        self.pending.store(0, Ordering::Relaxed);
    }

    /// Whether the form was longer than what is given to the parser.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Bounds the body of `request`. Whoever parses it tells the [`Progress`].
pub fn bound(request: Request, limits: Limits) -> (Request, Arc<Progress>) {
    let progress = Arc::new(Progress::default());
    let (head, body) = request.into_parts();
    let pieces = Pieces {
        body: body.into_data_stream(),
        chunk: Bytes::new(),
        limits,
        progress: Arc::clone(&progress),
        has_given: false,
    };
    (Request::from_parts(head, Body::from_stream(pieces)), progress)
}

struct Pieces {
    body: BodyDataStream,
    chunk: Bytes,
    /// What is left of them.
    limits: Limits,
    progress: Arc<Progress>,
    /// A piece since it was last pending. The parser takes all it can get before it looks at any of it.
    has_given: bool,
}

impl Stream for Pieces {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.has_given) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while self.chunk.is_empty() {
            let mut chunk = match ready!(self.body.poll_next_unpin(cx)) {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None if self.progress.is_over() => return Poll::Ready(Some(Err("the form is too long".into()))),
                None => return Poll::Ready(None),
            };
            if chunk.len() > self.limits.parsed {
                self.progress.is_over.store(true, Ordering::Relaxed);
            }
            if chunk.len() > self.limits.read {
                return Poll::Ready(Some(Err("the form is too long".into())));
            }
            self.limits.read -= chunk.len();
            chunk.truncate(self.limits.parsed);
            self.limits.parsed -= chunk.len();
            self.chunk = chunk;
        }
        let length = self.chunk.len().min(PIECE);
        let piece = self.chunk.split_to(length);
        if self.progress.pending.fetch_add(length, Ordering::Relaxed) + length > MAX_PENDING_BYTES {
            return Poll::Ready(Some(Err("too much stands between the parts of the form".into())));
        }
        self.has_given = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

const PIECE: usize = 16 * 1024;
/// Bytes between the contents of two parts, one piece of them included.
const MAX_PENDING_BYTES: usize = 2 * PIECE;
