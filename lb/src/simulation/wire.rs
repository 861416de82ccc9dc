//! HTTP/1.1 as the actors speak it, written apart from the balancer's so that both cannot be wrong together. Each byte of
//! content tells by its value which exchange, which attempt and which direction it belongs to, and its place there.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use super::book::{self, Framing};
use super::random::{below, between, one_in};
use super::tls::Tls;
use crate::clock;
use crate::clock::simulated::mixed;
use crate::http::io::pipe::Pipe;

thread_local! {
    /// What one read brings. Not in a future: those of the actors are moved, and a third of a run went there.
    static SCRAP: RefCell<Box<[u8]>> = RefCell::new(vec![0; 16 * 1024].into());
}

/// One direction of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stream {
    pub id: u32,
    pub attempt: usize,
    pub is_down: bool,
}

impl Stream {
    /// What the client sends, on all attempts.
    pub(super) fn up(id: u32) -> Self {
        Self { id, attempt: 0, is_down: false }
    }

    pub(super) fn down(id: u32, attempt: usize) -> Self {
        Self { id, attempt, is_down: true }
    }

    fn word(self, number: u64) -> [u8; 8] {
        let stream = (u64::from(self.id) << 16) | ((self.attempt as u64) << 1) | u64::from(self.is_down);
        mixed(mixed(stream + 1).wrapping_add(number)).to_le_bytes()
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

    /// Where `bytes` differ from what stands at `from`; `None`: nowhere.
    pub(super) fn difference(self, from: u64, bytes: &[u8]) -> Option<u64> {
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

    /// Says what is wrong with content that differs.
    pub(super) fn complaint(self, from: u64, bytes: &[u8]) -> Option<String> {
        let at = self.difference(from, bytes)?;
        let found = &bytes[(at - from) as usize..];
        let found = &found[..found.len().min(24)];
        Some(format!("byte {at} of {self:?} is not its own but: {:?}", String::from_utf8_lossy(found)))
    }
}

/// One end of a connection as an actor holds it.
pub(super) struct End {
    pub pipe: Pipe,
    pub tls: Option<Tls>,
    pauses: Pauses,
}

/// Short pauses that one side may still make: they are never long enough for a limit.
pub(super) struct Pauses(Cell<u32>);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(Cell::new(if one_in(2) { 0 } else { between(1, 40) as u32 }))
    }

    /// Pauses a little, or lets others run, or does nothing.
    pub(super) async fn breathe(&self) {
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

impl End {
    pub(super) fn new(pipe: Pipe, tls: Option<Tls>) -> Rc<Self> {
        Rc::new(Self { pipe, tls, pauses: Pauses::new() })
    }

    /// Reads what is there; 0: the other side has ended.
    pub(super) async fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|cx| {
            SCRAP.with_borrow_mut(|scrap| {
                let count = ready!(match &self.tls {
                    Some(tls) => tls.read(cx, &self.pipe, scrap),
                    None => self.pipe.read(cx, scrap),
                })?;
                buffer.extend_from_slice(&scrap[..count]);
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

    /// Sends the bytes in pieces, with pauses.
    pub(super) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = if one_in(3) { 1 + below(rest.len() as u64) as usize } else { rest.len() };
            let (piece, after) = rest.split_at(count);
            self.write(piece).await?;
            rest = after;
            if !rest.is_empty() {
                self.breathe().await;
            }
        }
        Ok(())
    }

    /// Pauses a little, or lets others run, or does nothing.
    pub(super) async fn breathe(&self) {
        self.pauses.breathe().await;
    }

    /// Says that no more will be sent.
    pub(super) async fn end(&self) {
        if let Some(tls) = &self.tls {
            let _ = poll_fn(|cx| tls.end(cx, &self.pipe)).await;
        }
        self.pipe.end();
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

/// A head as it came.
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

    /// How the content is framed, with its length, by RFC 9112 §6.3; `otherwise` where no field says so.
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

/// How reading a message ended before its end.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection ended; false: by a reset, or without the farewell of TLS.
    Ended {
        is_clean: bool,
    },
    Malformed(String),
}

/// What comes on a connection.
pub(super) struct Source {
    pub end: Rc<End>,
    buffer: Vec<u8>,
    at: usize,
    /// Bytes of messages so far.
    pub taken: u64,
}

impl Source {
    pub(super) fn new(end: &Rc<End>) -> Self {
        Self { end: Rc::clone(end), buffer: Vec::new(), at: 0, taken: 0 }
    }

    /// What has come and not been taken.
    pub(super) fn rest(&self) -> &[u8] {
        &self.buffer[self.at..]
    }

    fn take(&mut self, count: usize) {
        self.at += count;
        self.taken += count as u64;
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
    }

    /// Waits for more.
    pub(super) async fn more(&mut self) -> Result<(), Broken> {
        self.end.breathe().await;
        match self.end.read(&mut self.buffer).await {
            Ok(0) => Err(Broken::Ended { is_clean: true }),
            Ok(_) => Ok(()),
            Err(_) => Err(Broken::Ended { is_clean: false }),
        }
    }

    /// The next head.
    pub(super) async fn head(&mut self) -> Result<Head, Broken> {
        loop {
            if let Some(end) = self.rest().windows(4).position(|four| four == b"\r\n\r\n") {
                let head = Head::parse(&self.rest()[..end]).map_err(Broken::Malformed)?;
                self.take(end + 4);
                return Ok(head);
            }
            if self.rest().len() > 16 * 1024 {
                return Err(Broken::Malformed("no head, but more than 16 KiB".to_owned()));
            }
            self.more().await?;
        }
    }

    async fn line(&mut self) -> Result<String, Broken> {
        loop {
            if let Some(end) = self.rest().windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&self.rest()[..end]).into_owned();
                self.take(end + 2);
                return Ok(line);
            }
            if self.rest().len() > 4096 {
                return Err(Broken::Malformed("no line, but more than 4 KiB".to_owned()));
            }
            self.more().await?;
        }
    }

    /// Reads `count` bytes, whatever they are.
    pub(super) async fn skip(&mut self, mut count: u64) -> Result<(), Broken> {
        while count > 0 {
            if self.rest().is_empty() {
                self.more().await?;
            }
            let piece = (self.rest().len() as u64).min(count);
            self.take(piece as usize);
            count -= piece;
        }
        Ok(())
    }

    /// Reads `count` bytes of content, which are those of `stream` from `at` on.
    async fn exactly(&mut self, stream: Stream, at: &mut u64, mut count: u64) -> Result<(), Broken> {
        while count > 0 {
            if self.rest().is_empty() {
                self.more().await?;
            }
            let piece = self.rest().len().min(usize::try_from(count).unwrap_or(usize::MAX));
            if let Some(complaint) = stream.complaint(*at, &self.rest()[..piece]) {
                return Err(Broken::Malformed(complaint));
            }
            self.take(piece);
            *at += piece as u64;
            book::received(stream, self.end.pipe.link(), *at);
            count -= piece as u64;
        }
        Ok(())
    }

    /// Reads content to its end, or `most` bytes of it; `at` counts them. True: it has ended.
    pub(super) async fn content(
        &mut self,
        stream: Stream,
        framing: (Framing, u64),
        at: &mut u64,
        within: &mut u64,
        most: u64,
    ) -> Result<bool, Broken> {
        match framing {
            (Framing::None, _) => Ok(true),
            (Framing::Length, length) => {
                let count = (length - *at).min(most.saturating_sub(*at));
                self.exactly(stream, at, count).await?;
                Ok(*at == length)
            }
            (Framing::Chunked, _) => loop {
                if *within > 0 {
                    let count = (*within).min(most.saturating_sub(*at));
                    let before = *at;
                    let read = self.exactly(stream, at, count).await;
                    *within -= *at - before;
                    read?;
                    if *within > 0 {
                        return Ok(false);
                    }
                    if !self.line().await?.is_empty() {
                        return Err(Broken::Malformed("no line end after a chunk".to_owned()));
                    }
                }
                if *at >= most {
                    return Ok(false);
                }
                let line = self.line().await?;
                let size = u64::from_str_radix(line.split(';').next().unwrap_or_default(), 16);
                *within = size.map_err(|_| Broken::Malformed(format!("no size of a chunk: {line:?}")))?;
                if *within == 0 {
                    while !self.line().await?.is_empty() {}
                    return Ok(true);
                }
            },
            (Framing::UntilClose, _) => loop {
                if *at >= most {
                    return Ok(false);
                }
                if self.rest().is_empty() {
                    match self.more().await {
                        Err(Broken::Ended { is_clean: true }) => return Ok(true),
                        other => other?,
                    }
                }
                let count = self.rest().len() as u64;
                self.exactly(stream, at, count.min(most - *at)).await?;
            },
        }
    }
}

/// Writes content of `stream` from `at` up to `to` in pieces, framed so. The last chunk is for the caller to write.
pub(super) async fn send_content(
    end: &End,
    stream: Stream,
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
        stream.write(*at, count, &mut out);
        if framing == Framing::Chunked {
            out.extend_from_slice(b"\r\n");
        }
        end.write(&out).await?;
        *at += count;
        book::written(stream, *at);
        end.breathe().await;
    }
    Ok(())
}
