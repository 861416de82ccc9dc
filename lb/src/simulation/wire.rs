//! The actors' HTTP/1.1, written independently of the balancer's so that both cannot share a bug. The value of each
//! byte of content is determined by its exchange, attempt, direction and offset, so that a byte in the wrong place is
//! noticed.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use super::history::{self, Framing};
use super::random::{below, between, one_in};
use super::tls::Tls;
use crate::clock;
use crate::clock::simulated::mixed;
use crate::http::io::pipe::Pipe;

thread_local! {
    /// Buffer of a single read. Inside the actors' futures, which are moved, it took a third of the time of a run.
    static READ_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; 16 * 1024].into());
}

/// The content of one direction of one attempt: a pseudo-random sequence of bytes without an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Payload {
    pub id: u32,
    pub attempt: usize,
    pub is_download: bool,
}

impl Payload {
    /// The content of the request, the same for all attempts.
    pub(super) fn upload(id: u32) -> Self {
        Self { id, attempt: 0, is_download: false }
    }

    pub(super) fn download(id: u32, attempt: usize) -> Self {
        Self { id, attempt, is_download: true }
    }

    fn word(self, number: u64) -> [u8; 8] {
        let payload = (u64::from(self.id) << 16) | ((self.attempt as u64) << 1) | u64::from(self.is_download);
        mixed(mixed(payload + 1).wrapping_add(number)).to_le_bytes()
    }

    pub(super) fn write(self, from: u64, count: u64, out: &mut Vec<u8>) {
        let mut at = from;
        while at < from + count {
            let word = self.word(at / 8);
            let start = (at % 8) as usize;
            let end = (start + (from + count - at) as usize).min(8);
            out.extend_from_slice(&word[start..end]);
            at += (end - start) as u64;
        }
    }

    /// Compares `bytes` with the sequence from offset `from` on. Returns the first offset that differs.
    pub(super) fn first_difference(self, from: u64, bytes: &[u8]) -> Option<u64> {
        let mut at = from;
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = (at % 8) as usize;
            let count = rest.len().min(8 - start);
            let word = self.word(at / 8);
            if word[start..start + count] != rest[..count] {
                let wrong = (0..count).find(|&n| word[start + n] != rest[n]).unwrap_or_default();
                return Some(at + wrong as u64);
            }
            at += count as u64;
            rest = &rest[count..];
        }
        None
    }

    /// Compares like [`first_difference`](Self::first_difference), and describes the difference.
    pub(super) fn mismatch(self, from: u64, bytes: &[u8]) -> Option<String> {
        let at = self.first_difference(from, bytes)?;
        let found = &bytes[(at - from) as usize..];
        let found = &found[..found.len().min(24)];
        Some(format!("byte {at} of {self:?} is not its own but: {:?}", String::from_utf8_lossy(found)))
    }
}

/// An actor's side of a connection.
pub(super) struct Connection {
    pub pipe: Pipe,
    pub tls: Option<Tls>,
    pauses: Pauses,
    /// A pause that is still to be made while content is sent.
    long_pause: Cell<Option<Duration>>,
    sips: Sips,
}

/// How many longer pauses a client still makes, one before each read. Each is shorter than every time limit, and
/// together they are shorter than the time without a minimum rate, but longer than a lingering close of HTTP/2.
#[derive(Debug, Clone, Default)]
pub(super) struct Sips {
    left: Cell<u32>,
    pause: Duration,
}

impl Sips {
    /// `drawn` decides: in two of three cases there are none.
    pub(super) fn drawn(drawn: u64) -> Self {
        let left = if drawn.is_multiple_of(3) { 1 + (drawn >> 8) as u32 % 10 } else { 0 };
        Self { left: Cell::new(left), pause: Duration::from_millis(50 + (drawn >> 16) % 400) }
    }

    pub(super) fn has_any(&self) -> bool {
        self.left.get() > 0
    }

    /// How much of `unread` bytes to read at once, so that some are left for each further pause.
    pub(super) fn most(&self, unread: u64) -> usize {
        match u64::from(self.left.get()) {
            0 => usize::MAX,
            left => (unread / (left + 1)).max(1) as usize,
        }
    }

    /// The pause before the next read, if there is one.
    pub(super) fn next(&self) -> Option<Duration> {
        self.left.get().checked_sub(1).map(|left| {
            self.left.set(left);
            self.pause
        })
    }
}

/// How many short pauses an actor may still make. Together they stay below every time limit.
pub(super) struct Pauses(Cell<u32>);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(Cell::new(if one_in(2) { 0 } else { between(1, 40) as u32 }))
    }

    /// Pauses a little, or lets others run, or does nothing.
    pub(super) async fn maybe_pause(&self) {
        match below(8) {
            0 if self.0.get() > 0 => {
                self.0.set(self.0.get() - 1);
                clock::sleep(Duration::from_micros(between(1, 3000))).await;
            }
            1 | 2 => yield_now().await,
            _ => {}
        }
    }
}

impl Connection {
    pub(super) fn new(pipe: Pipe, tls: Option<Tls>) -> Rc<Self> {
        Self::sipping(pipe, tls, Sips::default())
    }

    /// Of a client that reads slowly.
    pub(super) fn sipping(pipe: Pipe, tls: Option<Tls>, sips: Sips) -> Rc<Self> {
        Rc::new(Self { pipe, tls, pauses: Pauses::new(), long_pause: Cell::default(), sips })
    }

    /// Has the actor pause once for so long while it sends content.
    pub(super) fn will_pause(&self, pause: Duration) {
        self.long_pause.set(Some(pause));
    }

    /// Reads what is available; 0: the other side has shut down.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|cx| {
            READ_BUFFER.with_borrow_mut(|scratch| {
                let count = ready!(match &self.tls {
                    Some(tls) => tls.read(cx, &self.pipe, scratch),
                    None => self.pipe.read(cx, scratch),
                })?;
                buffer.extend_from_slice(&scratch[..count]);
                Poll::Ready(Ok(count))
            })
        })
        .await
    }

    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = poll_fn(|cx| match &self.tls {
                Some(tls) => tls.write(cx, &self.pipe, bytes),
                None => self.pipe.write(cx, bytes),
            })
            .await?;
            bytes = &bytes[count..];
        }
        match &self.tls {
            Some(tls) => poll_fn(|cx| tls.flush(cx, &self.pipe)).await,
            None => Ok(()),
        }
    }

    /// Writes the bytes in pieces, with pauses in between.
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = if one_in(3) { 1 + below(rest.len() as u64) as usize } else { rest.len() };
            let (piece, after) = rest.split_at(count);
            self.write(piece).await?;
            rest = after;
            if !rest.is_empty() {
                self.maybe_pause().await;
            }
        }
        Ok(())
    }

    /// Pauses a little, or lets others run, or does nothing.
    pub(super) async fn maybe_pause(&self) {
        self.pauses.maybe_pause().await;
    }

    async fn maybe_pause_long(&self) {
        if let Some(pause) = self.long_pause.get()
            && one_in(3)
        {
            self.long_pause.set(None);
            clock::sleep(pause).await;
        }
    }

    /// Shuts down the sending side, under TLS after a close_notify alert.
    pub(super) async fn shutdown(&self) {
        if let Some(tls) = &self.tls {
            let _ = poll_fn(|cx| tls.close_notify(cx, &self.pipe)).await;
        }
        self.pipe.shutdown();
    }
}

pub(super) async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A received head.
#[derive(Debug, Clone, Default)]
pub(super) struct Head {
    pub first: Vec<String>,
    fields: Vec<(String, String)>,
}

impl Head {
    fn parse(text: &[u8]) -> Result<Self, String> {
        let text =
            std::str::from_utf8(text).map_err(|_| format!("a head is no text: {:?}", String::from_utf8_lossy(text)))?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned).collect();
        let field = |line: &str| {
            let (name, value) =
                line.split_once(':').ok_or_else(|| format!("a line of a head has no colon: {line:?}"))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        let fields = lines.map(field).collect::<Result<_, String>>()?;
        Ok(Self { first, fields })
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    pub(super) fn lists(&self, name: &str, option: &str) -> bool {
        self.field(name).is_some_and(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(option)))
    }

    /// The framing of the content and its length (RFC 9112 §6.3); `otherwise` if no field tells it.
    pub(super) fn framing(&self, otherwise: Framing) -> (Framing, u64) {
        if self.lists("transfer-encoding", "chunked") {
            return (Framing::Chunked, 0);
        }
        match self.number("content-length") {
            Some(length) => (Framing::Length, length),
            None => (otherwise, 0),
        }
    }
}

/// Why a message could not be read to its end.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The connection was closed: cleanly, or by a reset, or under TLS without close_notify.
    Closed {
        is_clean: bool,
    },
    Malformed(String),
}

/// Reads messages from a connection.
pub(super) struct Reader {
    pub connection: Rc<Connection>,
    buffer: Vec<u8>,
    at: usize,
}

impl Reader {
    pub(super) fn new(connection: &Rc<Connection>) -> Self {
        Self { connection: Rc::clone(connection), buffer: Vec::new(), at: 0 }
    }

    /// Bytes that were received and not consumed yet.
    pub(super) fn buffered(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn take(&mut self, count: usize) {
        self.at += count;
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
    }

    /// Waits for more bytes and buffers them.
    pub(super) async fn fill(&mut self) -> Result<(), ReadError> {
        self.connection.maybe_pause().await;
        if let Some(pause) = self.connection.sips.next() {
            clock::sleep(pause).await;
        }
        match self.connection.read(&mut self.buffer).await {
            Ok(0) => Err(ReadError::Closed { is_clean: true }),
            Ok(_) => Ok(()),
            Err(_) => Err(ReadError::Closed { is_clean: false }),
        }
    }

    /// Reads the next head.
    pub(super) async fn head(&mut self) -> Result<Head, ReadError> {
        loop {
            if let Some(end) = self.buffered().windows(4).position(|four| four == b"\r\n\r\n") {
                let head = Head::parse(&self.buffered()[..end]).map_err(ReadError::Malformed)?;
                self.take(end + 4);
                return Ok(head);
            }
            if self.buffered().len() > 16 * 1024 {
                return Err(ReadError::Malformed("no head, but more than 16 KiB".to_owned()));
            }
            self.fill().await?;
        }
    }

    async fn line(&mut self) -> Result<String, ReadError> {
        loop {
            if let Some(end) = self.buffered().windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.buffered()[..end]).into_owned();
                self.take(end + 2);
                return Ok(line);
            }
            if self.buffered().len() > 4096 {
                return Err(ReadError::Malformed("no line, but more than 4 KiB".to_owned()));
            }
            self.fill().await?;
        }
    }

    /// Skips `count` bytes.
    pub(super) async fn skip(&mut self, mut count: u64) -> Result<(), ReadError> {
        while count > 0 {
            if self.buffered().is_empty() {
                self.fill().await?;
            }
            let piece = (self.buffered().len() as u64).min(count);
            self.take(piece as usize);
            count -= piece;
        }
        Ok(())
    }

    /// Reads `count` bytes of content and compares them with `payload` from offset `at` on.
    async fn exactly(&mut self, payload: Payload, at: &mut u64, mut count: u64) -> Result<(), ReadError> {
        while count > 0 {
            if self.buffered().is_empty() {
                self.fill().await?;
            }
            let piece = self.buffered().len().min(usize::try_from(count).unwrap_or(usize::MAX));
            if let Some(mismatch) = payload.mismatch(*at, &self.buffered()[..piece]) {
                return Err(ReadError::Malformed(mismatch));
            }
            self.take(piece);
            *at += piece as u64;
            history::record_received(payload, self.connection.pipe.link(), *at);
            count -= piece as u64;
        }
        Ok(())
    }

    /// Reads content until it ends or `at`, the count of its bytes, has reached `max`. Returns whether it has ended.
    /// `chunk_left` counts the bytes left in the current chunk.
    pub(super) async fn content(
        &mut self,
        payload: Payload,
        framing: (Framing, u64),
        at: &mut u64,
        chunk_left: &mut u64,
        max: u64,
    ) -> Result<bool, ReadError> {
        match framing {
            (Framing::None, _) => Ok(true),
            (Framing::Length, length) => {
                let count = (length - *at).min(max.saturating_sub(*at));
                self.exactly(payload, at, count).await?;
                Ok(*at == length)
            }
            (Framing::Chunked, _) => loop {
                if *chunk_left > 0 {
                    let count = (*chunk_left).min(max.saturating_sub(*at));
                    let before = *at;
                    let read = self.exactly(payload, at, count).await;
                    *chunk_left -= *at - before;
                    read?;
                    if *chunk_left > 0 {
                        return Ok(false);
                    }
                    if !self.line().await?.is_empty() {
                        return Err(ReadError::Malformed("no line end after a chunk".to_owned()));
                    }
                }
                if *at >= max {
                    return Ok(false);
                }
                let line = self.line().await?;
                let size = u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16);
                *chunk_left = size.map_err(|_| ReadError::Malformed(format!("no size of a chunk: {line:?}")))?;
                if *chunk_left == 0 {
                    while !self.line().await?.is_empty() {}
                    return Ok(true);
                }
            },
            (Framing::UntilClose, _) => loop {
                if *at >= max {
                    return Ok(false);
                }
                if self.buffered().is_empty() {
                    match self.fill().await {
                        Err(ReadError::Closed { is_clean: true }) => return Ok(true),
                        other => other?,
                    }
                }
                let count = self.buffered().len() as u64;
                self.exactly(payload, at, count.min(max - *at)).await?;
            },
        }
    }
}

/// Writes `payload` from offset `at` up to `to`, in pieces of up to `max_write` bytes. The last chunk is the caller's.
pub(super) async fn send_content(
    connection: &Connection,
    payload: Payload,
    framing: Framing,
    at: &mut u64,
    to: u64,
    piece: u64,
) -> io::Result<()> {
    let mut out = Vec::new();
    while *at < to {
        let count = (1 + below(piece)).min(to - *at);
        out.clear();
        if framing == Framing::Chunked {
            out.extend_from_slice(format!("{count:x}\r\n").as_bytes());
        }
        payload.write(*at, count, &mut out);
        if framing == Framing::Chunked {
            out.extend_from_slice(b"\r\n");
        }
        connection.write(&out).await?;
        *at += count;
        history::record_written(payload, *at);
        connection.maybe_pause().await;
        connection.maybe_pause_long().await;
    }
    Ok(())
}
