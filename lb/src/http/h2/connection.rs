//! One connection of HTTP/2 from a client, without its socket (RFC 9113 §5): it is told what came, and asked for what has
//! to be sent. Each request is a stream, whose content is taken and whose response is given here. Nothing waits: what
//! cannot go on now has its task woken when it can.
//!
//! What a client can make this hold is bounded: [`MAX_STREAMS`] that are served and as many requests that wait, with a
//! window of content each, a block of fields, [`MAX_QUEUED_BYTES`] of responses and a frame, [`MAX_CONTROL_BYTES`] of answers
//! to frames, and HPACK's table.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};

use super::buffers;
use super::frame::{
    self, Bad, Code, DataFrame, FIRST_WINDOW, Frame, HEAD_BYTES, Head, MAX_ID, MAX_PAYLOAD, MAX_WINDOW, Setting, write,
};
use super::head::{Request, RequestReader, TrailerReader};
use super::hpack::{self, BadBlock};

/// Streams that a client may have open at once, and tasks that serve streams, whose end may have come before theirs. RFC 9113
/// §6.5.2 recommends no less.
pub const MAX_STREAMS: usize = 100;
/// How much further than their first windows streams may be opened whose content is taken as fast as it comes, all of them
/// together. Without it an upload is held to 64 KiB for each round trip.
const EXTRA_WINDOW: i64 = 1024 * 1024;
/// How much content a client may send ahead on all streams together: the windows of all and of one more, so that those
/// whose backend does not read hold up no other.
const CONNECTION_WINDOW: i64 = (MAX_STREAMS as i64 + 1) * 64 * 1024 + EXTRA_WINDOW;
/// The client may send as much again once so much was taken. Small beside what all streams leave of the connection's window.
const RELEASED_AT_ONCE: i64 = 32 * 1024;
/// So much of a stream's content may have been taken and not been freed, or as much as has not been taken.
const MAX_TAKEN_BYTES: usize = 32 * 1024;
/// Responses wait for their turn while so much is to be sent.
const MAX_QUEUED_BYTES: usize = 64 * 1024;
/// Nothing more is read while so much of control frames is to be sent that the client has caused: answers to PING and
/// SETTINGS (CVE-2019-9512, -9515), resets of streams, and windows that are given back.
const MAX_CONTROL_BYTES: usize = 16 * 1024;
/// How many streams may be lost, where none is answered: those that the client cancels before its response begins ("rapid
/// reset", CVE-2023-44487), and those that end by its errors ("MadeYouReset", CVE-2025-8671). An answer makes up for one, and
/// so does some time, up to this many. A head that is too large counts as two, since it costs more than others that are refused.
const MAX_LOST: u32 = 100;
/// How many requests beyond [`MAX_STREAMS`] may be refused in a row. A client that knows the limit asks for none.
const MAX_REFUSED: u32 = 1_000;
/// How many frames that bring nothing a client may send: PRIORITY, frames of kinds that nobody knows, content without any,
/// acknowledgements, resets of what is over (CVE-2019-9513, -9518), and those that open windows. So many at first and for each
/// stream that it opens, and so many for each frame of content that it is sent, which it may open windows for. What is left
/// of them is bounded, too.
const IDLE_FRAMES_OF_STREAM: u32 = 100;
const IDLE_FRAMES_OF_CONTENT: u32 = 20;
const MAX_IDLE_FRAMES: u32 = 10_000;
/// CONTINUATION frames of one block (CVE-2024-27316).
const MAX_CONTINUATIONS: u32 = 32;
/// How many streams are remembered once they are over, to tell what is still under way from what must not come.
const MAX_REMEMBERED: usize = 128;

/// Asks whether the client has read that it is to leave.
const LEAVING_PING: [u8; 8] = *b"leaving\0";

/// The stream, or the connection, is over for its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// What there is of a request's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// So many bytes can be taken.
    Some(usize),
    End,
}

/// A frame, or a block of fields, whose end has not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// What came before it, by [`Connection::arrivals`]: of content another one whenever some of it comes.
    pub at: u64,
    pub is_content: bool,
}

/// What a head begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// Nothing; another head follows.
    Interim,
    Response,
    /// A WebSocket.
    Tunnel,
}

#[derive(Debug)]
pub struct Connection {
    /// How much of the preface has come, then whether the first SETTINGS frame has.
    preface: usize,
    has_begun: bool,
    /// The client knows what we allow.
    knows_settings: bool,
    decoder: hpack::Decoder,
    /// SETTINGS_MAX_HEADER_LIST_SIZE, as it was told, or is by now.
    list_bytes: usize,
    /// Fields whose end has not come.
    block: Option<Box<Block>>,
    /// A DATA frame whose end has not come.
    data: Option<IncomingData>,
    /// By their numbers.
    #[expect(clippy::vec_box, reason = "they move whenever one before them ends, and are large")]
    streams: Vec<Box<Stream>>,
    last_id: u32,
    requests: VecDeque<(u32, Request)>,
    /// Tasks that serve streams, [`MAX_STREAMS`] at most. Those of [`Self::requests`] are still to come.
    tasks: usize,
    ended: Recent,
    reset: Recent,
    /// Those that were served, where all the content has come that was declared, and the client has still to say so.
    unended: Recent,
    /// What is to be sent; `out_at` of it has been. Up to `response_end` there are parts of responses.
    out: Vec<u8>,
    out_at: usize,
    response_end: usize,
    controls: ControlBytes,
    /// The client's windows: of the connection, and what those of new streams are.
    send_window: i64,
    first_send_window: i64,
    /// HPACK's table has to be given up at the beginning of the next block.
    is_table_due: bool,
    /// What the client may still send, and what it may send besides once it is told.
    receive_window: i64,
    unreleased: i64,
    /// What no stream has of [`EXTRA_WINDOW`].
    extra_window: i64,
    /// Streams that have fields to send, or content, and wait for room in `out`, or for the window of the connection. Each is
    /// there by [`Turn::Waits`], in the order in which they came.
    waiting: [VecDeque<u32>; 2],
    /// How many streams have been [called](Turn::Called) to send fields, or content.
    called: [usize; 2],
    /// How many more streams may be lost, and requests refused.
    losses_left: u32,
    refusals_left: u32,
    /// How many frames may still come that bring nothing.
    idle_frames_left: u32,
    /// Frames that have come, where each piece of a DATA frame counts as one.
    arrivals: u64,
    leaving: Leaving,
    /// The client opens no more streams.
    is_client_leaving: bool,
    error: Option<(Code, &'static str)>,
    is_closed: bool,
    task: Option<Waker>,
    is_called: bool,
}

/// How far the client has been told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// It has been asked to; what it sent before it reads that is still served.
    Asked,
    /// Nothing beyond this stream is served.
    Told(u32),
}

/// Bytes of [control frames](Connection::control) that may still be in `out`. They go among other frames; where each ends is
/// not kept. Those `before` are sent once so much of `out` is as there was at the `mark`, counted from `out_at`.
#[derive(Debug, Default)]
struct ControlBytes {
    before: usize,
    mark: usize,
    behind: usize,
}

impl ControlBytes {
    fn bytes(&self) -> usize {
        self.before + self.behind
    }

    /// `count` bytes were sent, and so many are left.
    fn sent(&mut self, count: usize, left: usize) {
        self.mark = self.mark.saturating_sub(count);
        if self.mark == 0 {
            (self.before, self.behind) = (if left == 0 { 0 } else { self.behind }, 0);
            self.mark = left;
        }
    }
}

/// What is still to come of a DATA frame, and what nobody takes of it.
#[derive(Debug)]
struct IncomingData {
    id: u32,
    content: usize,
    padding: usize,
    is_end: bool,
    /// Its padding, with the length of that.
    overhead: i64,
    /// Content of a stream that is over, or that nobody wants.
    dropped: i64,
}

#[derive(Debug)]
struct Block {
    /// What had come before it, by [`Connection::arrivals`].
    at: u64,
    id: u32,
    bytes: Vec<u8>,
    is_end: bool,
    depends_on_itself: bool,
    continuations: u32,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    input: Input,
    /// What came of its content and has not been taken, from `content_at` on.
    content: Vec<u8>,
    content_at: usize,
    trailers: Vec<u8>,
    /// How much is still to come, where the head says so.
    declared: Option<u64>,
    receive_window: i64,
    unreleased: i64,
    /// How much further than at first it is open.
    extra_window: i64,
    output: Output,
    send_window: i64,
    reset: Option<Reset>,
    /// Of the task that serves it. It waits for all that concerns its stream; without one it has been woken, and has not been
    /// polled since, or waits for nothing.
    waker: Option<Waker>,
    turn: Turn,
}

/// Where a stream stands that has something in hand which cannot be sent at once. One that has nothing in hand has no turn
/// and is in no queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    None,
    /// In the queue. Its task is to be woken when it is called.
    Waits(Part),
    /// Woken to send; there is room and window for a frame of it. Its task has not tried since: whatever comes of that, the
    /// turn is over.
    Called(Part),
}

/// What is to be sent, and the place of its queue in [`Connection::waiting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Fields = 0,
    /// Takes of the window.
    Content = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Input {
    Open,
    /// Nobody wants it.
    Dropped,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Output {
    Open,
    /// A final response has begun.
    Begun,
    /// What a WebSocket carries: a client that resets it ends it.
    Tunnel,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    ByClient,
    ByUs,
}

/// The last streams of a kind.
#[derive(Debug, Default)]
struct Recent {
    ids: VecDeque<u32>,
    /// The last one that is not remembered.
    forgotten: u32,
}

impl Recent {
    fn add(&mut self, id: u32) {
        if let Some(oldest) = self.oldest() {
            self.ids.pop_front();
            self.forgotten = self.forgotten.max(oldest);
        }
        self.ids.push_back(id);
    }

    /// The one that is forgotten for the next.
    fn oldest(&self) -> Option<u32> {
        self.ids.front().copied().filter(|_| self.ids.len() == MAX_REMEMBERED)
    }

    /// Whether it was there.
    fn take(&mut self, id: u32) -> bool {
        let at = self.ids.iter().position(|other| *other == id);
        at.and_then(|at| self.ids.remove(at)).is_some()
    }

    fn has(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }
}

impl Stream {
    fn new(id: u32, declared: Option<u64>, is_end: bool, send_window: i64) -> Box<Self> {
        Box::new(Self {
            id,
            input: if is_end { Input::Ended } else { Input::Open },
            content: Vec::new(),
            content_at: 0,
            trailers: Vec::new(),
            declared,
            receive_window: FIRST_WINDOW,
            unreleased: 0,
            extra_window: 0,
            output: Output::Open,
            send_window,
            reset: None,
            waker: None,
            turn: Turn::None,
        })
    }

    /// Whether it counts among those that are open at once.
    fn is_open(&self) -> bool {
        self.reset.is_none() && !(self.input == Input::Ended && self.output == Output::Ended)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn wait<T>(&mut self, cx: &Context<'_>) -> Poll<T> {
        wait(&mut self.waker, cx);
        Poll::Pending
    }

    /// Gives the content up that nobody has taken; how much that was.
    fn drop_content(&mut self) -> i64 {
        let left = self.content.len() - self.content_at;
        buffers::give_back(std::mem::take(&mut self.content));
        self.content_at = 0;
        left as i64
    }
}

fn wait(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

impl Connection {
    /// Fields of a request may be `list_bytes` together.
    pub fn new(list_bytes: usize) -> Self {
        let mut new = Self {
            preface: 0,
            has_begun: false,
            knows_settings: false,
            decoder: hpack::Decoder::default(),
            list_bytes,
            block: None,
            data: None,
            streams: Vec::new(),
            last_id: 0,
            requests: VecDeque::new(),
            tasks: 0,
            ended: Recent::default(),
            reset: Recent::default(),
            unended: Recent::default(),
            out: Vec::new(),
            out_at: 0,
            response_end: 0,
            controls: ControlBytes::default(),
            send_window: FIRST_WINDOW,
            first_send_window: FIRST_WINDOW,
            is_table_due: false,
            receive_window: CONNECTION_WINDOW,
            unreleased: 0,
            extra_window: EXTRA_WINDOW,
            waiting: [VecDeque::new(), VecDeque::new()],
            called: [0; 2],
            losses_left: MAX_LOST,
            refusals_left: MAX_REFUSED,
            idle_frames_left: IDLE_FRAMES_OF_STREAM,
            arrivals: 0,
            leaving: Leaving::No,
            is_client_leaving: false,
            error: None,
            is_closed: false,
            task: None,
            is_called: false,
        };
        let settings = [
            (write::MAX_CONCURRENT_STREAMS, MAX_STREAMS as u32),
            (write::MAX_HEADER_LIST_SIZE, u32::try_from(list_bytes).unwrap_or(u32::MAX)),
            (write::ENABLE_CONNECT_PROTOCOL, 1),
        ];
        let out = new.out();
        write::settings(&settings, out);
        write::window_update(0, (CONNECTION_WINDOW - FIRST_WINDOW) as u32, out);
        new
    }

    // --- The socket's side.

    /// Takes what came; how much of it. The rest is to be given again with what comes behind it, and where
    /// [`Self::is_full`], once that is over.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive_frames(bytes, &mut usize::MAX.clone())
    }

    /// As [`Self::receive`], no more than so many frames; how many more they may be.
    pub fn receive_frames(&mut self, bytes: &[u8], frames_left: &mut usize) -> usize {
        let mut at = 0;
        if self.preface < frame::PREFACE.len() {
            let expected = &frame::PREFACE[self.preface..];
            at = expected.len().min(bytes.len());
            if bytes[..at] != expected[..at] {
                self.fail(Code::Protocol, "no preface of HTTP/2");
            }
            self.preface += at;
        }
        while self.error.is_none() && !self.is_closed && !self.is_full() && *frames_left > 0 {
            let rest = &bytes[at..];
            let came = match self.data.take() {
                Some(data) => self.go_on_with_data(data, rest),
                None => self.next_frame(rest).inspect(|_| *frames_left -= 1),
            };
            let Some((used, outcome)) = came else { return at };
            self.arrivals += 1;
            at += used;
            match outcome {
                Ok(()) => {}
                Err(Bad::Connection(code, why)) => self.fail(code, why),
                Err(Bad::Stream(id, code)) => self.fail_stream(id, code),
            }
        }
        if self.error.is_some() || self.is_closed { bytes.len() } else { at }
    }

    /// From now on fields of a request may be so many bytes together.
    pub fn limit_fields(&mut self, list_bytes: usize) {
        self.list_bytes = list_bytes;
    }

    /// Whether nothing can be taken before some of what is to be sent has been.
    pub fn is_full(&self) -> bool {
        self.controls.bytes() >= MAX_CONTROL_BYTES
    }

    /// What the client has begun and not ended. `unread`: what [`Self::receive`] did not take.
    pub fn unfinished(&self, unread: &[u8]) -> Option<Unfinished> {
        match &self.block {
            Some(block) => Some(Unfinished { at: block.at, is_content: false }),
            None if self.is_full() || unread.is_empty() && self.data.is_none() => None,
            None => {
                let is_content = self.data.is_some() || frame::begins_content(unread);
                Some(Unfinished { at: self.arrivals, is_content })
            }
        }
    }

    /// What is to be sent next.
    pub fn unsent(&self) -> &[u8] {
        &self.out[self.out_at..]
    }

    /// So much of it has been sent.
    pub fn sent(&mut self, count: usize) {
        self.out_at += count;
        self.controls.sent(count, self.out.len() - self.out_at);
        if self.out_at == self.out.len() {
            buffers::give_back(std::mem::take(&mut self.out));
            (self.out_at, self.response_end) = (0, 0);
        } else if self.out_at >= MAX_QUEUED_BYTES {
            self.out.drain(..self.out_at);
            self.response_end = self.response_end.saturating_sub(self.out_at);
            self.out_at = 0;
        }
        self.call_next();
    }

    /// Whether parts of responses are still to be sent.
    pub fn has_unsent_response(&self) -> bool {
        self.response_end > self.out_at
    }

    /// A request that has come, where it may be served. Whoever takes it has to [leave](Self::leave) its stream.
    pub fn next_request(&mut self) -> Option<(u32, Request)> {
        if self.tasks >= MAX_STREAMS {
            return None;
        }
        let next = self.requests.pop_front()?;
        self.tasks += 1;
        Some(next)
    }

    /// Whether there is a request that may be served.
    pub fn has_request(&self) -> bool {
        self.tasks < MAX_STREAMS && !self.requests.is_empty()
    }

    /// Whether requests are being served, or are to be.
    pub fn is_serving(&self) -> bool {
        self.tasks > 0 || !self.requests.is_empty()
    }

    /// Whether the client has sent what a client of HTTP/2 sends first.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Why the connection ends, where that is the client's fault. It has still to be told.
    pub fn error(&self) -> Option<(Code, &'static str)> {
        self.error
    }

    /// Whether the client was told to leave and has nothing more to come, or leaves by itself.
    pub fn is_over(&self) -> bool {
        let is_leaving = matches!(self.leaving, Leaving::Told(_)) || self.is_client_leaving;
        let has_ended = self.tasks == 0 && self.streams.is_empty() && self.unended.ids.is_empty();
        is_leaving && has_ended && !self.has_unsent_response()
    }

    /// Asks the client to open no more streams. What it opens before it reads that is served.
    pub fn ask_to_leave(&mut self) {
        if self.leaving == Leaving::No && !self.is_closed {
            self.leaving = Leaving::Asked;
            write::goaway(MAX_ID, Code::NoError, "", self.out());
            write::ping(&LEAVING_PING, false, self.out());
        }
    }

    /// Tells the client that the connection ends now. Streams that are open end with it.
    pub fn close(&mut self, code: Code, why: &'static str) {
        // The end of the connection would be one of their responses for some clients.
        for id in std::mem::take(&mut self.unended.ids) {
            write::reset(id, Code::NoError, self.out());
        }
        let told = if let Leaving::Told(last) = self.leaving { Some(last) } else { None };
        // Who knows already hears nothing new.
        if !self.is_closed && (told.is_none() || code != Code::NoError) {
            write::goaway(told.unwrap_or(self.last_id), code, why, self.out());
        }
        self.lose();
    }

    /// The connection is over for the client: those who serve streams learn it.
    pub fn lose(&mut self) {
        self.is_closed = true;
        for (id, _) in std::mem::take(&mut self.requests) {
            self.remove(id);
        }
        for stream in &mut self.streams {
            stream.reset.get_or_insert(Reset::ByClient);
            stream.wake();
        }
    }

    /// Has the connection's task woken by whatever concerns the socket. To be called at the end of its turn.
    pub fn wait(&mut self, cx: &Context<'_>) {
        self.is_called = false;
        wait(&mut self.task, cx);
    }

    fn call(&mut self) {
        if !std::mem::replace(&mut self.is_called, true)
            && let Some(task) = &self.task
        {
            task.wake_by_ref();
        }
    }

    /// Ends the connection by an error of the client's.
    pub fn fail(&mut self, code: Code, why: &'static str) {
        if self.error.is_none() {
            self.error = Some((code, why));
            self.close(code, why);
        }
    }

    // --- Frames.

    /// Takes a frame, or what is there of a DATA frame; how much that was, and what came of it. `None`: that is too little.
    fn next_frame(&mut self, bytes: &[u8]) -> Option<(usize, Result<(), Bad>)> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let head = Head::read(head);
        if head.len > MAX_PAYLOAD {
            let too_large = Bad::Connection(Code::FrameSize, "a frame that is too large");
            return Some((HEAD_BYTES, Err(too_large)));
        }
        if !head.is_data() {
            let payload = rest.get(..head.len)?;
            return Some((HEAD_BYTES + head.len, self.may_come(head).and_then(|()| self.frame(head, payload))));
        }
        match self.may_come(head).and_then(|()| head.data(rest)) {
            Ok(data) => {
                let data = data?;
                let begun = HEAD_BYTES + data.size - data.content - data.padding;
                Some(match self.begin_data(data) {
                    Ok(incoming) => {
                        let (used, outcome) = self.take_data(incoming, &bytes[begun..]);
                        (begun + used, outcome)
                    }
                    Err(bad) => (begun, Err(bad)),
                })
            }
            Err(bad) => Some((HEAD_BYTES, Err(bad))),
        }
    }

    /// Whether this frame may come now.
    fn may_come(&self, head: Head) -> Result<(), Bad> {
        let protocol = |why| Err(Bad::Connection(Code::Protocol, why));
        if !self.has_begun && !head.is_settings() {
            return protocol("a first frame that is not SETTINGS");
        }
        if self.block.is_some() != head.continues() {
            return protocol("fields that are not continued, or have no beginning");
        }
        Ok(())
    }

    fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), Bad> {
        let protocol = |why| Err(Bad::Connection(Code::Protocol, why));
        match head.frame(payload)? {
            Frame::Headers { id, .. } if id % 2 == 0 => protocol("a stream of the client with a number of ours"),
            Frame::Headers { id, block, is_end, is_last: true, depends_on_itself } => {
                self.fields(id, block, is_end, depends_on_itself)
            }
            Frame::Headers { id, block, is_end, is_last: false, depends_on_itself } => {
                let (at, bytes) = (self.arrivals, block.to_vec());
                self.block = Some(Box::new(Block { at, id, bytes, is_end, depends_on_itself, continuations: 0 }));
                Ok(())
            }
            Frame::Continuation { id, block, is_last } => self.continuation(id, block, is_last),
            Frame::Priority { id, depends_on_itself: true } => Err(Bad::Stream(id, Code::Protocol)),
            Frame::Priority { .. } | Frame::Other => self.count_idle(),
            Frame::Reset { id } => self.reset_by_client(id),
            Frame::Settings(payload) => self.settings(payload),
            Frame::SettingsAck => {
                self.knows_settings = true;
                self.count_idle()
            }
            Frame::Ping(data) => {
                write::ping(&data, true, self.control());
                Ok(())
            }
            Frame::PingAck(data) => {
                if data == LEAVING_PING && self.leaving == Leaving::Asked {
                    let last = self.last_id;
                    self.leaving = Leaving::Told(last);
                    write::goaway(last, Code::NoError, "", self.out());
                }
                self.count_idle()
            }
            Frame::GoAway => {
                self.is_client_leaving = true;
                self.count_idle()
            }
            Frame::WindowUpdate { id, by } => {
                self.count_idle()?;
                self.window_update(id, by.into())
            }
        }
    }

    fn continuation(&mut self, id: u32, more: &[u8], is_last: bool) -> Result<(), Bad> {
        let Some(mut block) = self.block.take() else { return Ok(()) };
        if block.id != id {
            return Err(Bad::Connection(Code::Protocol, "fields that are continued on another stream"));
        }
        block.continuations += 1;
        // What is refused for its size can be read to its end.
        let most = (2 * self.list_bytes).max(MAX_PAYLOAD);
        if block.continuations > MAX_CONTINUATIONS || block.bytes.len() + more.len() > most {
            return Err(Bad::Connection(Code::EnhanceYourCalm, "fields without end"));
        }
        block.bytes.extend_from_slice(more);
        if is_last {
            return self.fields(id, &block.bytes, block.is_end, block.depends_on_itself);
        }
        self.block = Some(block);
        Ok(())
    }

    /// A whole block of fields: the head of a request, or its trailers.
    fn fields(&mut self, id: u32, block: &[u8], is_end: bool, depends_on_itself: bool) -> Result<(), Bad> {
        if id > self.last_id {
            return self.request(id, block, is_end, depends_on_itself);
        }
        let Some(at) = self.find(id) else {
            if self.reset.has(id) || self.has_forgotten(id) {
                return self.skip(block);
            }
            if self.unended.take(id) {
                self.ended.add(id);
                self.skip(block)?;
                return if is_end { Ok(()) } else { Err(Bad::Stream(id, Code::Protocol)) };
            }
            return Err(match self.ended.has(id) {
                true => Bad::Connection(Code::StreamClosed, "fields on a stream that is closed"),
                false => Bad::Connection(Code::Protocol, "a stream with a smaller number than others"),
            });
        };
        match (self.streams[at].reset, self.streams[at].input) {
            (Some(Reset::ByUs), _) => self.skip(block),
            (Some(Reset::ByClient), _) => Err(Bad::Connection(Code::StreamClosed, "fields on a stream that was reset")),
            (None, Input::Ended) => self.skip(block).and(Err(Bad::Stream(id, Code::StreamClosed))),
            (None, Input::Open | Input::Dropped) => {
                let mut reader = TrailerReader::default();
                let fits = self.read(block, |name, value| reader.field(name, value))?;
                let stream = &mut self.streams[at];
                match reader.finish() {
                    // RFC 9113 §8.1.
                    Some(trailers) if fits && is_end && !depends_on_itself => {
                        if stream.output != Output::Tunnel {
                            stream.trailers = trailers;
                        }
                        self.end_input(at)
                    }
                    _ => Err(Bad::Stream(id, Code::Protocol)),
                }
            }
        }
    }

    fn request(&mut self, id: u32, block: &[u8], is_end: bool, depends_on_itself: bool) -> Result<(), Bad> {
        self.last_id = id;
        if let Leaving::Told(_) = self.leaving {
            self.reset.add(id);
            return self.skip(block);
        }
        // There are never more than twice as many to look through.
        if self.streams.len() >= MAX_STREAMS && self.streams.iter().filter(|s| s.is_open()).count() >= MAX_STREAMS {
            self.skip(block)?;
            return self.refuse(id);
        }
        let mut reader = RequestReader::new(self.list_bytes);
        let fits = self.read(block, |name, value| reader.field(name, value))?;
        match reader.finish(is_end, fits) {
            Some(request) if !depends_on_itself => {
                self.allow_idle(IDLE_FRAMES_OF_STREAM);
                self.refusals_left = MAX_REFUSED;
                // Its answer makes up for one of them.
                (0..2 * u32::from(request.is_too_large)).try_for_each(|_| self.count_lost())?;
                self.streams.push(Stream::new(id, request.declared, is_end, self.first_send_window));
                self.requests.push_back((id, request));
                Ok(())
            }
            _ => Err(Bad::Stream(id, Code::Protocol)),
        }
    }

    /// Refuses a request that is one too many. Nothing of it was done: the client may repeat it.
    fn refuse(&mut self, id: u32) -> Result<(), Bad> {
        self.reset.add(id);
        write::reset(id, Code::RefusedStream, self.control());
        // A client that does not know the limit yet may go beyond it.
        if self.knows_settings {
            let why = "too many requests beyond the limit";
            let left = self.refusals_left.checked_sub(1).ok_or(Bad::Connection(Code::EnhanceYourCalm, why))?;
            self.refusals_left = left;
        }
        Ok(())
    }

    /// Reads a block that belongs to nothing, since the next ones may refer to it.
    fn skip(&mut self, block: &[u8]) -> Result<(), Bad> {
        self.read(block, |_, _| {}).map(drop)
    }

    /// False: the fields are too large, and not all were given to `field`.
    fn read(&mut self, block: &[u8], field: impl FnMut(&[u8], &[u8])) -> Result<bool, Bad> {
        self.decoder.read(block, self.list_bytes, field).map_err(|bad| match bad {
            BadBlock::TooLarge => Bad::Connection(Code::EnhanceYourCalm, "fields that are far too large"),
            _ => Bad::Connection(Code::Compression, "fields that cannot be decompressed"),
        })
    }

    /// A DATA frame begins, and counts against the windows as a whole. A stream's error ends the stream; what is still to come of
    /// the frame is dropped.
    fn begin_data(&mut self, frame: DataFrame) -> Result<IncomingData, Bad> {
        let DataFrame { id, content, padding, size, is_end } = frame;
        let size = size as i64;
        if self.is_idle(id) {
            return Err(Bad::Connection(Code::Protocol, "content on a stream without a head"));
        }
        if size > self.receive_window {
            return Err(Bad::Connection(Code::FlowControl, "more content than the connection's window"));
        }
        self.receive_window -= size;
        if content == 0 && !is_end {
            self.count_idle()?;
        }
        if let Some(code) = self.content_error(id, content, size)? {
            self.fail_stream(id, code);
        }
        if let Some(at) = self.find_unreset(id) {
            let stream = &mut self.streams[at];
            stream.receive_window -= size;
            stream.declared = stream.declared.map(|declared| declared - content as u64);
        }
        Ok(IncomingData { id, content, padding, is_end, overhead: size - content as i64, dropped: 0 })
    }

    /// What is wrong with content on a stream.
    fn content_error(&mut self, id: u32, content: usize, size: i64) -> Result<Option<Code>, Bad> {
        let Some(at) = self.find(id) else {
            return match self.reset.has(id) || self.has_forgotten(id) || self.unended.has(id) && content == 0 {
                true => Ok(None),
                false if self.unended.take(id) => Ok(Some(Code::Protocol)),
                false => Err(Bad::Connection(Code::StreamClosed, "content on a stream that is closed")),
            };
        };
        let stream = &self.streams[at];
        Ok(match (stream.reset, stream.input) {
            (Some(Reset::ByUs), _) => None,
            (Some(Reset::ByClient), _) | (None, Input::Ended) => Some(Code::StreamClosed),
            _ if size > stream.receive_window => Some(Code::FlowControl),
            _ if stream.declared.is_some_and(|declared| declared < content as u64) => Some(Code::Protocol),
            _ => None,
        })
    }

    /// Hands on what came of a DATA frame; how much that was. `None`: nothing came.
    fn go_on_with_data(&mut self, data: IncomingData, bytes: &[u8]) -> Option<(usize, Result<(), Bad>)> {
        if bytes.is_empty() {
            self.data = Some(data);
            return None;
        }
        Some(self.take_data(data, bytes))
    }

    fn take_data(&mut self, mut data: IncomingData, bytes: &[u8]) -> (usize, Result<(), Bad>) {
        let (content, rest) = bytes.split_at(data.content.min(bytes.len()));
        let padding = data.padding.min(rest.len());
        data.content -= content.len();
        data.padding -= padding;
        match self.find_unreset(data.id).map(|at| &mut self.streams[at]) {
            Some(stream) if stream.input == Input::Open => {
                if !content.is_empty() {
                    if stream.content.capacity() == 0 {
                        stream.content = buffers::take();
                    }
                    stream.content.extend_from_slice(content);
                    stream.wake();
                }
            }
            _ => data.dropped += content.len() as i64,
        }
        let used = content.len() + padding;
        if data.content + data.padding > 0 {
            self.data = Some(data);
            return (used, Ok(()));
        }
        (used, self.end_data(&data))
    }

    /// The end of a DATA frame has come: the client may send as much again as nobody takes of it.
    fn end_data(&mut self, data: &IncomingData) -> Result<(), Bad> {
        let IncomingData { id, is_end, overhead, dropped, .. } = *data;
        let at = self.find_unreset(id);
        if let Some(at) = at {
            self.release_on_stream(at, overhead);
        }
        self.release(overhead + dropped);
        match at {
            _ if !is_end => Ok(()),
            Some(at) => self.end_input(at),
            None => {
                if self.unended.take(id) {
                    self.ended.add(id);
                }
                Ok(())
            }
        }
    }

    /// The client has sent everything on a stream.
    fn end_input(&mut self, at: usize) -> Result<(), Bad> {
        let stream = &mut self.streams[at];
        if stream.declared.is_some_and(|declared| declared > 0) {
            return Err(Bad::Stream(stream.id, Code::Protocol));
        }
        stream.input = Input::Ended;
        stream.wake();
        Ok(())
    }

    fn reset_by_client(&mut self, id: u32) -> Result<(), Bad> {
        if self.is_idle(id) {
            return Err(Bad::Connection(Code::Protocol, "a reset of a stream without a head"));
        }
        if self.unended.take(id) {
            self.ended.add(id);
        }
        let Some(at) = self.find_unreset(id) else { return self.count_idle() };
        let stream = &mut self.streams[at];
        stream.reset = Some(Reset::ByClient);
        let is_lost = stream.output == Output::Open;
        self.give_up(at);
        if is_lost { self.count_lost() } else { Ok(()) }
    }

    /// A stream has been reset. Its task learns it; where there is none yet, there will be none.
    fn give_up(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        stream.wake();
        let (id, left) = (stream.id, stream.drop_content());
        self.release(left);
        self.end_turn(at);
        self.call_next();
        if let Some(request) = self.requests.iter().rposition(|(other, _)| *other == id) {
            self.requests.remove(request);
            self.remove(id);
        }
    }

    /// Forgets a stream that nobody serves.
    fn remove(&mut self, id: u32) {
        let Some(at) = self.find(id) else { return };
        self.end_turn(at);
        let mut stream = self.streams.remove(at);
        self.release(stream.drop_content());
        self.extra_window += stream.extra_window;
        match (stream.reset, stream.input) {
            (Some(Reset::ByUs), _) => self.reset.add(id),
            (None, Input::Open | Input::Dropped) => {
                if let Some(oldest) = self.unended.oldest() {
                    self.reset.add(oldest);
                    write::reset(oldest, Code::NoError, self.control());
                }
                self.unended.add(id);
            }
            _ => self.ended.add(id),
        }
        self.call_next();
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Bad> {
        self.has_begun = true;
        let mut first_window = self.first_send_window;
        for setting in frame::settings(payload) {
            match setting? {
                Setting::HeaderTableSize => self.is_table_due = true,
                // A frame may hold a thousand of them.
                Setting::InitialWindowSize(size) => first_window = size,
            }
        }
        let by = first_window - std::mem::replace(&mut self.first_send_window, first_window);
        for stream in self.streams.iter_mut().filter(|_| by != 0) {
            if stream.send_window + by > MAX_WINDOW {
                return Err(Bad::Connection(Code::FlowControl, "a window beyond the largest"));
            }
            stream.send_window += by;
            stream.wake();
        }
        write::settings_ack(self.control());
        Ok(())
    }

    fn window_update(&mut self, id: u32, by: i64) -> Result<(), Bad> {
        if id == 0 {
            if self.send_window + by > MAX_WINDOW {
                return Err(Bad::Connection(Code::FlowControl, "a window beyond the largest"));
            }
            self.send_window += by;
            self.call_next();
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(Bad::Connection(Code::Protocol, "a window of a stream without a head"));
        }
        let Some(at) = self.find(id) else { return Ok(()) };
        let stream = &mut self.streams[at];
        if stream.send_window + by > MAX_WINDOW {
            return Err(Bad::Stream(id, Code::FlowControl));
        }
        let was_closed = stream.send_window <= 0;
        stream.send_window += by;
        if was_closed {
            stream.wake();
        }
        Ok(())
    }

    /// Whether no stream of this number has been opened.
    fn is_idle(&self, id: u32) -> bool {
        id > self.last_id || id.is_multiple_of(2)
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.streams.binary_search_by_key(&id, |stream| stream.id).ok()
    }

    /// Whether nobody knows any more how a stream ended: it may have been reset, and what comes on it may be under way.
    fn has_forgotten(&self, id: u32) -> bool {
        id <= self.ended.forgotten.max(self.reset.forgotten) && !self.ended.has(id) && !self.unended.has(id)
    }

    /// One that was reset by nobody.
    fn find_unreset(&self, id: u32) -> Option<usize> {
        self.find(id).filter(|&at| self.streams[at].reset.is_none())
    }

    /// Ends a stream by an error of the client's.
    fn fail_stream(&mut self, id: u32, code: Code) {
        if self.is_idle(id) {
            return self.fail(code, "an error on a stream without a head");
        }
        match self.find(id) {
            Some(at) => {
                let stream = &mut self.streams[at];
                if stream.reset == Some(Reset::ByUs) {
                    return;
                }
                stream.reset = Some(Reset::ByUs);
                self.give_up(at);
            }
            None => self.reset.add(id),
        }
        write::reset(id, code, self.control());
        if let Err(Bad::Connection(code, why)) = self.count_lost() {
            self.fail(code, why);
        }
    }

    /// A frame has come that brings nothing.
    fn count_idle(&mut self) -> Result<(), Bad> {
        let why = "too many frames that bring nothing";
        let left = self.idle_frames_left.checked_sub(1).ok_or(Bad::Connection(Code::EnhanceYourCalm, why))?;
        self.idle_frames_left = left;
        Ok(())
    }

    fn allow_idle(&mut self, more: u32) {
        self.idle_frames_left = (self.idle_frames_left + more).min(MAX_IDLE_FRAMES);
    }

    fn count_lost(&mut self) -> Result<(), Bad> {
        let why = "too many streams that are reset";
        self.losses_left = self.losses_left.checked_sub(1).ok_or(Bad::Connection(Code::EnhanceYourCalm, why))?;
        Ok(())
    }

    /// Time has made up for so many streams that were lost.
    pub fn make_up(&mut self, count: u32) {
        self.losses_left = self.losses_left.saturating_add(count).min(MAX_LOST);
    }

    /// The client may send as much again on the connection.
    fn release(&mut self, size: i64) {
        self.unreleased += size;
        if self.unreleased >= RELEASED_AT_ONCE {
            let by = std::mem::take(&mut self.unreleased);
            self.receive_window += by;
            write::window_update(0, by as u32, self.control());
            self.call();
        }
    }

    /// The client may send as much again on the stream, or more where nobody has to take anything of it.
    fn release_on_stream(&mut self, at: usize, size: i64) {
        let stream = &mut self.streams[at];
        stream.unreleased += size;
        if stream.unreleased >= FIRST_WINDOW / 2 && stream.input == Input::Open && stream.reset.is_none() {
            let mut by = std::mem::take(&mut stream.unreleased);
            if stream.content.is_empty() {
                // Whoever takes it is no slower than the client: let more be under way.
                let more = by.min(self.extra_window);
                stream.extra_window += more;
                self.extra_window -= more;
                by += more;
            }
            stream.receive_window += by;
            let id = stream.id;
            write::window_update(id, by as u32, self.control());
            self.call();
        }
    }

    /// To be appended to.
    fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = buffers::take();
        }
        &mut self.out
    }

    /// To be appended to by a control frame that the client has caused.
    fn control(&mut self) -> &mut Vec<u8> {
        // The longest of them: a PING.
        self.controls.behind += HEAD_BYTES + 8;
        self.out()
    }

    // --- A stream's side. A stream that is not there is gone.

    /// Waits for content of a request, or its end.
    pub fn poll_content(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<Came, Gone>> {
        let Some(at) = self.find(id) else { return Poll::Ready(Err(Gone)) };
        let stream = &mut self.streams[at];
        if stream.reset.is_some() {
            return Poll::Ready(Err(Gone));
        }
        match (stream.content.len() - stream.content_at, stream.input) {
            (0, Input::Open) => stream.wait(cx),
            (0, Input::Dropped | Input::Ended) => Poll::Ready(Ok(Came::End)),
            (count, _) => Poll::Ready(Ok(Came::Some(count))),
        }
    }

    /// Takes content, at most so much; the client may then send as much again, or more where that was all there is.
    pub fn take_content(&mut self, id: u32, most: usize, put: impl FnOnce(&[u8])) -> usize {
        let Some(at) = self.find(id) else { return 0 };
        let stream = &mut self.streams[at];
        let content = &stream.content[stream.content_at..];
        let count = content.len().min(most);
        put(&content[..count]);
        stream.content_at += count;
        if stream.content_at == stream.content.len() {
            stream.drop_content();
        } else if stream.content_at >= MAX_TAKEN_BYTES.max(stream.content.len() / 2) {
            stream.content.drain(..stream.content_at);
            stream.content_at = 0;
        }
        self.release_on_stream(at, count as i64);
        self.release(count as i64);
        count
    }

    /// The trailers of a request that has ended, as lines of HTTP/1.1.
    pub fn take_trailers(&mut self, id: u32) -> Vec<u8> {
        self.find(id).map_or_else(Vec::new, |at| std::mem::take(&mut self.streams[at].trailers))
    }

    /// What comes of the request from now on is dropped.
    pub fn drop_content(&mut self, id: u32) {
        if let Some(at) = self.find(id) {
            let stream = &mut self.streams[at];
            let left = stream.drop_content();
            if stream.input == Input::Open {
                stream.input = Input::Dropped;
            }
            self.release(left);
        }
    }

    /// Whether the client has to open the stream's own window before it is sent more.
    pub fn is_window_shut(&self, id: u32) -> bool {
        self.find(id).is_some_and(|at| self.streams[at].send_window <= 0)
    }

    /// Waits until the stream is reset.
    pub fn poll_reset(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Gone> {
        match self.find(id).map(|at| &mut self.streams[at]) {
            Some(stream) if stream.reset.is_none() => stream.wait(cx),
            _ => Poll::Ready(Gone),
        }
    }

    /// Waits until fields can be sent. To be asked by who has some in hand. Once it is ready, they are sent next, or
    /// [`Self::stand_back`] is called.
    pub fn poll_room(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let Some(at) = self.find_unreset(id) else { return Poll::Ready(Err(Gone)) };
        self.poll_turn(at, Part::Fields, cx).map(Ok)
    }

    /// Waits until content can be sent; how much, in one frame. To be asked by who has some in hand. Once it is ready, that is
    /// sent next, or [`Self::stand_back`] is called.
    pub fn poll_window(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
        let Some(at) = self.find_unreset(id) else { return Poll::Ready(Err(Gone)) };
        let stream = &mut self.streams[at];
        if stream.send_window <= 0 {
            // Its own window wakes it.
            let waits = stream.wait(cx);
            self.stand_back(id);
            return waits;
        }
        ready!(self.poll_turn(at, Part::Content, cx));
        Poll::Ready(Ok(self.frame_window(at)))
    }

    /// How much content can be sent in one more frame, without waiting.
    pub fn window(&self, id: u32) -> usize {
        let at = self.find(id).filter(|_| self.is_free(Part::Content));
        at.map_or(0, |at| self.frame_window(at))
    }

    fn frame_window(&self, at: usize) -> usize {
        self.send_window.min(self.streams[at].send_window).clamp(0, MAX_PAYLOAD as i64) as usize
    }

    /// Whoever serves the stream has nothing in hand: it takes nobody's turn, and waits for none.
    pub fn stand_back(&mut self, id: u32) {
        if let Some(at) = self.find(id) {
            self.end_turn(at);
        }
        self.call_next();
    }

    /// Sends a head, whose fields `write` appends. Nothing is sent on a stream that was reset, here and below.
    pub fn send_head(&mut self, id: u32, begins: Begins, is_end: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(at) = self.find_unreset(id) else { return };
        match begins {
            Begins::Interim => {}
            Begins::Response => self.streams[at].output = Output::Begun,
            Begins::Tunnel => self.streams[at].output = Output::Tunnel,
        }
        self.send_fields(at, is_end, write);
    }

    /// Ends a response by its trailers.
    pub fn send_trailers(&mut self, id: u32, write: impl FnOnce(&mut Vec<u8>)) {
        if let Some(at) = self.find_unreset(id) {
            self.send_fields(at, true, write);
        }
    }

    fn send_fields(&mut self, at: usize, is_end: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let (id, is_table_due) = (self.streams[at].id, std::mem::take(&mut self.is_table_due));
        let out = self.out();
        let start = write::begin(out);
        if is_table_due {
            hpack::write_no_table(out);
        }
        write(out);
        write::end_headers(start, id, is_end, out);
        self.sent_part(at, is_end);
    }

    /// Begins a frame of content, which is then appended to [`Self::content`] up to what [`Self::poll_window`] said.
    pub fn begin_content(&mut self) -> usize {
        write::begin(self.out())
    }

    pub fn content(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Ends the frame that begins at `start`. One that is empty and ends nothing is not sent.
    pub fn end_content(&mut self, start: usize, id: u32, is_end: bool) {
        let len = self.out.len() - start - HEAD_BYTES;
        let Some(at) = self.find_unreset(id).filter(|_| len > 0 || is_end) else { return self.drop_frame(start) };
        write::end_data(start, id, is_end, &mut self.out);
        if len > 0 {
            self.allow_idle(IDLE_FRAMES_OF_CONTENT);
        }
        self.send_window -= len as i64;
        self.streams[at].send_window -= len as i64;
        self.sent_part(at, is_end);
    }

    fn drop_frame(&mut self, start: usize) {
        self.out.truncate(start);
        if start == 0 {
            buffers::give_back(std::mem::take(&mut self.out));
        }
    }

    fn sent_part(&mut self, at: usize, is_end: bool) {
        self.response_end = self.out.len();
        if is_end {
            let stream = &mut self.streams[at];
            if std::mem::replace(&mut stream.output, Output::Ended) != Output::Ended {
                self.make_up(1);
            }
            self.end_turn(at);
        }
        self.call_next();
        self.call();
    }

    /// Ends a stream whose response is not complete, so that its client knows it.
    pub fn abort(&mut self, id: u32, code: Code) {
        if let Some(at) = self.find_unreset(id) {
            self.streams[at].reset = Some(Reset::ByUs);
            write::reset(id, code, self.control());
            self.response_end = self.out.len();
            self.end_turn(at);
            self.call_next();
        }
    }

    /// Whoever served the stream is done with it. What is not complete is reset.
    pub fn leave(&mut self, id: u32) {
        self.tasks -= 1;
        self.call();
        let Some(at) = self.find(id) else { return };
        let stream = &self.streams[at];
        match (stream.input, stream.output) {
            _ if self.is_closed => {}
            (Input::Ended, Output::Ended) => {}
            // Its end may be under way, in a frame of its own.
            (_, Output::Ended) if stream.declared == Some(0) => {}
            // It need not send the rest (RFC 9113 §8.1).
            (_, Output::Ended) => self.abort(id, Code::NoError),
            _ => self.abort(id, Code::Cancel),
        }
        self.remove(id);
        if self.streams.is_empty() {
            self.streams.shrink_to(4);
            self.waiting = [VecDeque::new(), VecDeque::new()];
            self.requests.shrink_to(4);
        }
    }

    // --- Turns: responses go out a frame at a time, in the order in which they came to wait, their fields before content.
    //
    // Whoever has something in hand and cannot send it stands in a queue, and its task waits. Whoever is called has been
    // woken, and has not tried to send since. So if anybody waits, then the next frame is kept from it by bytes that the
    // socket will take, by a window that the client has to open, or by one that is called, whose task will run: each of them
    // ends in `call_next`.

    /// Whether whoever comes can send a frame without taking the turn of another.
    fn is_free(&self, part: Part) -> bool {
        let is_first = match part {
            Part::Fields => self.waiting[0].is_empty(),
            Part::Content => self.called == [0; 2] && self.waiting.iter().all(VecDeque::is_empty),
        };
        is_first && self.has_room() && (part == Part::Fields || self.has_window())
    }

    /// Whether there is room for another frame than those of who is called.
    fn has_room(&self) -> bool {
        self.out.len() - self.out_at + self.called.iter().sum::<usize>() * MAX_PAYLOAD < MAX_QUEUED_BYTES
    }

    /// Whether the connection's window has some for another frame than those of who is called.
    fn has_window(&self) -> bool {
        self.send_window > (self.called[Part::Content as usize] * MAX_PAYLOAD) as i64
    }

    /// Ready: a frame can be sent, and the stream has no turn any more. Pending: it has its place in the queue.
    fn poll_turn(&mut self, at: usize, part: Part, cx: &Context<'_>) -> Poll<()> {
        let turn = self.streams[at].turn;
        if turn == Turn::Called(part) || turn != Turn::Waits(part) && self.is_free(part) {
            self.end_turn(at);
            return Poll::Ready(());
        }
        let waits = self.streams[at].wait(cx);
        if turn != Turn::Waits(part) {
            self.end_turn(at);
            let stream = &mut self.streams[at];
            stream.turn = Turn::Waits(part);
            self.waiting[part as usize].push_back(stream.id);
            self.call_next();
        }
        waits
    }

    /// Takes a stream its turn and its place in the queue. To be followed by [`Self::call_next`].
    fn end_turn(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let id = stream.id;
        match std::mem::replace(&mut stream.turn, Turn::None) {
            Turn::None => {}
            Turn::Waits(part) => self.waiting[part as usize].retain(|other| *other != id),
            Turn::Called(part) => self.called[part as usize] -= 1,
        }
    }

    /// Calls those whose turn it is.
    fn call_next(&mut self) {
        while self.has_room() {
            let part = match &self.waiting {
                [fields, _] if !fields.is_empty() => Part::Fields,
                [_, content] if !content.is_empty() && self.has_window() => Part::Content,
                _ => return,
            };
            if let Some(id) = self.waiting[part as usize].pop_front()
                && let Some(at) = self.find(id)
            {
                self.streams[at].turn = Turn::Called(part);
                self.streams[at].wake();
                self.called[part as usize] += 1;
            }
        }
    }

    /// Checks what is promised above, but for the tasks: `is_awake` tells whether one of a stream is to run.
    #[cfg(test)]
    pub fn is_sound(&self, is_awake: impl Fn(u32) -> bool) {
        for (queue, part) in self.waiting.iter().zip([Part::Fields, Part::Content]) {
            for id in queue {
                let stream = self.find(*id).map(|at| &self.streams[at]).expect("a stream");
                assert!(stream.turn == Turn::Waits(part), "{stream:?}");
                assert!(stream.reset.is_none() && stream.output != Output::Ended, "{stream:?}");
                assert!(stream.waker.is_some() || is_awake(*id), "nothing wakes it");
            }
            let is_asleep = self.streams.iter().any(|one| one.turn == Turn::Called(part) && !is_awake(one.id));
            assert!(!is_asleep, "called, and not woken");
            let count = |turn| self.streams.iter().filter(|stream| stream.turn == turn).count();
            assert_eq!(count(Turn::Waits(part)), queue.len());
            assert_eq!(count(Turn::Called(part)), self.called[part as usize]);
        }
        let [fields, content] = &self.waiting;
        assert!(
            !self.has_room() || fields.is_empty() && (content.is_empty() || !self.has_window()),
            "nobody is called"
        );
        assert!(self.tasks <= MAX_STREAMS && self.streams.len() <= 2 * MAX_STREAMS);
    }
}

#[cfg(test)]
mod tests;
