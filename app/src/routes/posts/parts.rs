//! Bounds the body of a multipart form before its parser: pieces are small, and few of them may pass without the parser
//! producing a part.
//!
//! The parser keeps the bytes between the contents of parts (boundaries and headers) in memory until they are complete,
//! and has no limit for them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use axum::BoxError;
use axum::body::{Body, BodyDataStream};
use axum::extract::Request;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};

/// Limits on a form, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Passed to the parser. The rest is read and dropped: a browser shows the response only after it has sent
    /// everything.
    pub parsed: usize,
    /// Read in total.
    pub read: usize,
}

/// The progress of a form.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes that were passed to the parser and from which it has produced nothing yet.
    pending: AtomicUsize,
    is_over: AtomicBool,
}

impl Progress {
    /// The parser has produced the beginning of a part, or some of its content.
    pub fn made(&self) {
        self.pending.store(0, Ordering::Relaxed);
    }

    /// Whether the form exceeded the limit for the parser.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

/// Bounds the body of `request`. The code that parses it must report to the [`Progress`].
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
    /// The remaining limits.
    limits: Limits,
    progress: Arc<Progress>,
    /// A piece has been passed on since it was last pending. The parser reads all that it can get before it parses any
    /// of it.
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
            return Poll::Ready(Some(Err("too many bytes are between the parts of the form".into())));
        }
        self.has_given = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

const PIECE: usize = 16 * 1024;
/// Limit on the bytes between the contents of two parts, one piece of them included.
const MAX_PENDING_BYTES: usize = 2 * PIECE;
