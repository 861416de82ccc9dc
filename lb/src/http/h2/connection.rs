//! The state of one HTTP/2 connection from a client, without its socket (RFC 9113 §5). Its task puts in the bytes that
//! were read and takes out the bytes to write. The tasks of its streams take the content of requests and put in
//! responses. No method blocks: one that returns `Pending` has kept the waker of the task.
//!
//! What a client can make this hold is bounded: [`MAX_STREAMS`] streams that are served and as many requests that wait,
//! each with a window of content; a block of fields; [`MAX_QUEUED_BYTES`] of responses and a frame;
//! [`MAX_CONTROL_BYTES`] of replies to frames; and HPACK's table.

mod budgets;
mod content;
mod ended;
mod turns;

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker, ready};

use super::buffers;
use super::frame::{
    self, Code, FIRST_WINDOW, Frame, FrameError, HEAD_BYTES, Head, MAX_ID, MAX_PAYLOAD, MAX_WINDOW, Setting, write,
};
use super::head::{Request, RequestReader, TrailerReader};
use super::hpack::{self, BadBlock};
use budgets::Budgets;
use content::{CONNECTION_WINDOW, EXTRA_WINDOW, IncomingData};
use ended::EndedStreams;
use turns::{Part, Turn};

/// Maximum of open streams (SETTINGS_MAX_CONCURRENT_STREAMS), and of tasks that serve streams: a task may outlive its
/// stream. RFC 9113 §6.5.2 recommends no less.
pub const MAX_STREAMS: usize = 100;
/// Responses [wait for their turn](turns) while so many bytes are still to be written.
const MAX_QUEUED_BYTES: usize = 64 * 1024;
/// Nothing more is read while so many bytes of control frames that the client has caused are still to be written:
/// acknowledgements of PING and SETTINGS (CVE-2019-9512, -9515), RST_STREAM and WINDOW_UPDATE.
const MAX_CONTROL_BYTES: usize = 16 * 1024;
/// Maximum of CONTINUATION frames of one block, beside those that a block of the maximum size fills (CVE-2024-27316).
const MAX_CONTINUATIONS: usize = 32;

/// What is wrong with a stream that depends on itself, and with trailers behind which content may follow.
const OF_ITSELF: &str = "a stream that depends on itself";
const NOT_LAST: &str = "trailers without END_STREAM";

/// A byte, in the units in which a stream's share of what is sent is counted.
const SHARE_UNITS: u64 = 1 << 16;

/// Sent behind the first GOAWAY: its acknowledgement shows that the client has read that.
const LEAVING_PING: [u8; 8] = *b"leaving\0";

/// The client has reset the stream, or the connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// How much of a request's content has arrived and has not been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// This many bytes can be taken.
    Bytes(usize),
    End,
}

/// An error of the client for which a stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub why: &'static str,
    /// No task serves, or has served, the stream: nobody else counts its request as failed.
    pub is_unserved: bool,
}

/// A frame, or a block of fields, of which only a part has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unfinished {
    /// The value of [`Connection::arrivals`] when it began, which tells it from others. For DATA when its last piece
    /// came.
    pub at: u64,
    pub is_content: bool,
}

/// The flow-control window that a stream with content to send waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutWindow {
    /// Its own.
    Stream,
    /// That of all streams together.
    Connection,
}

/// The kind of a response's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// Another head follows.
    Interim,
    Response,
    /// It opens a WebSocket.
    Tunnel,
}

#[derive(Debug)]
pub struct Connection {
    /// How many bytes of the preface have come.
    preface: usize,
    /// The client's first SETTINGS frame has come.
    has_begun: bool,
    /// The client has acknowledged our SETTINGS.
    knows_settings: bool,
    decoder: hpack::Decoder,
    /// The limit on the fields of a request. A reload may have changed it since SETTINGS_MAX_HEADER_LIST_SIZE was sent.
    list_bytes: usize,
    /// A block of fields whose END_HEADERS has not come.
    block: Option<Box<Block>>,
    /// A DATA frame of which only a part has come.
    data: Option<IncomingData>,
    /// Ascending by id.
    #[expect(clippy::vec_box, reason = "they move whenever one before them ends, and are large")]
    streams: Vec<Box<Stream>>,
    /// The highest id that the client has used.
    last_id: u32,
    /// Requests without a task yet, oldest first. Each has its stream in `streams`.
    requests: VecDeque<(u32, Request)>,
    /// How many tasks serve streams: at most [`MAX_STREAMS`]. [`Self::next_request`] adds one, [`Self::leave`] takes
    /// one away.
    tasks: usize,
    ended: EndedStreams,
    /// Bytes to be written to the socket; the first `out_at` have been. Bytes of responses lie before `response_end`
    /// only.
    out: Vec<u8>,
    out_at: usize,
    response_end: usize,
    controls: ControlBytes,
    /// The client's flow-control windows: the connection's, and the initial one of new streams.
    send_window: i64,
    first_send_window: i64,
    /// The next block of fields has to begin with a dynamic table size update (RFC 7541 §4.2).
    is_table_due: bool,
    /// Our window: how much the client may still send, and how much was taken for which no WINDOW_UPDATE was sent yet.
    receive_window: i64,
    unreleased: i64,
    /// How much of [`EXTRA_WINDOW`] no stream has.
    extra_window: i64,
    /// Ids of streams that wait to send fields, and content, oldest first: those with [`Turn::Waits`].
    waiting: [VecDeque<u32>; 2],
    /// How many streams have [`Turn::Called`] to send fields, and content.
    called: [usize; 2],
    /// How much content each stream that has waited for its turn all the time would have sent, if turns were single
    /// bytes; in units of [`SHARE_UNITS`] to the byte.
    share: u64,
    budgets: Budgets,
    /// How many frames have come. Each piece of a DATA frame counts as one.
    arrivals: u64,
    leaving: Leaving,
    /// The client has sent GOAWAY.
    is_client_leaving: bool,
    /// The client's error that ends the connection, and what it is told about it.
    error: Option<(Code, &'static str)>,
    /// Streams that were reset because of errors of the client, and have not been [taken](Self::take_faults). The
    /// limit on lost streams bounds them.
    faults: Vec<Fault>,
    /// The connection has ended for the streams; nothing more is received.
    is_closed: bool,
    /// The task that moves the socket's bytes, and whether it has been woken since its last [`Self::register_driver`].
    driver: Option<Waker>,
    is_driver_woken: bool,
}

/// The graceful shutdown of RFC 9113 §6.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    No,
    /// GOAWAY was sent with the largest id: streams that the client opens before it has read that are served.
    Announced,
    /// GOAWAY was sent with this id: no later stream is served.
    Final(u32),
}

/// How many bytes of [control frames](Connection::control) may still be in `out`. Where each frame lies is not kept:
/// they are counted in two groups, on either side of a mark `mark` bytes behind `out_at`. Those `before` it have been
/// written when the mark is reached; then a new one is set at the end of `out`.
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

    /// The first `count` bytes of `out` were sent, and `left` are still there.
    fn sent(&mut self, count: usize, left: usize) {
        self.mark = self.mark.saturating_sub(count);
        if self.mark == 0 {
            (self.before, self.behind) = (if left == 0 { 0 } else { self.behind }, 0);
            self.mark = left;
        }
    }
}

#[derive(Debug)]
struct Block {
    /// The value of [`Connection::arrivals`] when it began.
    at: u64,
    id: u32,
    bytes: Vec<u8>,
    is_end: bool,
    depends_on_itself: bool,
    continuations: usize,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    input: Input,
    /// Content that has come; the first `content_at` bytes have been taken.
    content: Vec<u8>,
    content_at: usize,
    trailers: Vec<u8>,
    /// How many bytes of content are still to come by Content-Length. A DATA frame that has begun counts as received.
    declared: Option<u64>,
    /// Our window, and how much was taken for which no WINDOW_UPDATE was sent yet.
    receive_window: i64,
    unreleased: i64,
    /// How much of [`EXTRA_WINDOW`] it has.
    extra_window: i64,
    output: Output,
    /// The response is one of our own, not a backend's.
    is_own: bool,
    /// The client's window.
    send_window: i64,
    reset: Option<Reset>,
    /// Wakes the task that serves the stream, while that waits. `None`: it has been woken, or waits for nothing.
    waker: Option<Waker>,
    turn: Turn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Open,
    /// Nobody takes the content: what arrives is dropped.
    Dropped,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Open,
    /// A final response has begun.
    Begun,
    /// A WebSocket is open: a client that resets it ends it.
    Tunnel,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reset {
    ByClient,
    ByUs,
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
            is_own: false,
            send_window,
            reset: None,
            waker: None,
            turn: Turn::None,
        })
    }

    /// Whether it counts against SETTINGS_MAX_CONCURRENT_STREAMS.
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

    /// Drops the content that was not taken. Returns how many bytes that was.
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
    /// A new connection. The fields of a request may have `list_bytes` together.
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
            ended: EndedStreams::default(),
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
            share: 0,
            budgets: Budgets::default(),
            arrivals: 0,
            leaving: Leaving::No,
            is_client_leaving: false,
            error: None,
            faults: Vec::new(),
            is_closed: false,
            driver: None,
            is_driver_woken: false,
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

    /// Takes bytes that the client sent. Returns how many. The caller keeps the rest and passes it again when more has
    /// come, and if [`Self::is_full`] once it is not any more.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        self.receive_frames(bytes, &mut usize::MAX.clone())
    }

    /// As [`Self::receive`], for at most `frames_left` frames, from which those that were taken are subtracted.
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
                Some(data) => self.continue_data(data, rest),
                None => self.next_frame(rest).inspect(|_| *frames_left -= 1),
            };
            let Some((used, outcome)) = came else { return at };
            self.arrivals += 1;
            at += used;
            match outcome {
                Ok(()) => {}
                Err(FrameError::Connection(code, why)) => self.fail(code, why),
                Err(FrameError::Stream(id, code, why)) => self.fail_stream(id, code, why),
            }
        }
        if self.error.is_some() || self.is_closed { bytes.len() } else { at }
    }

    /// Sets the limit on the fields of a request.
    pub fn limit_fields(&mut self, list_bytes: usize) {
        self.list_bytes = list_bytes;
    }

    /// Whether nothing more is received until control frames have been written.
    pub fn is_full(&self) -> bool {
        self.controls.bytes() >= MAX_CONTROL_BYTES
    }

    /// The frame or block of fields that has come in part. `unread`: what [`Self::receive`] did not take.
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

    /// Bytes to be written to the socket.
    pub fn unsent(&self) -> &[u8] {
        &self.out[self.out_at..]
    }

    /// The first `count` bytes of [`Self::unsent`] have been written.
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

    /// Whether bytes of responses are still to be written.
    pub fn has_unsent_response(&self) -> bool {
        self.response_end > self.out_at
    }

    /// The next request to be served. The caller has to [leave](Self::leave) its stream in the end.
    pub fn next_request(&mut self) -> Option<(u32, Request)> {
        if self.tasks >= MAX_STREAMS {
            return None;
        }
        let next = self.requests.pop_front()?;
        self.tasks += 1;
        Some(next)
    }

    /// Whether [`Self::next_request`] would give one.
    pub fn has_request(&self) -> bool {
        self.tasks < MAX_STREAMS && !self.requests.is_empty()
    }

    /// Whether requests are being served, or wait to be.
    pub fn is_serving(&self) -> bool {
        self.tasks > 0 || !self.requests.is_empty()
    }

    /// Whether the client has sent the preface with its SETTINGS frame.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The client's error that ends the connection, if there was one. Its GOAWAY is in [`Self::unsent`].
    pub fn error(&self) -> Option<(Code, &'static str)> {
        self.error
    }

    /// The streams that were reset because of errors of the client since the last call.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Whether either side has sent its last GOAWAY, and all streams have ended and been written.
    pub fn is_over(&self) -> bool {
        let is_leaving = matches!(self.leaving, Leaving::Final(_)) || self.is_client_leaving;
        let has_ended = self.tasks == 0 && self.streams.is_empty() && !self.ended.has_unended();
        is_leaving && has_ended && !self.has_unsent_response()
    }

    /// Begins a graceful shutdown: asks the client to open no more streams, and serves those that it opens before it
    /// reads that.
    pub fn ask_to_leave(&mut self) {
        if self.leaving == Leaving::No && !self.is_closed {
            self.leaving = Leaving::Announced;
            write::goaway(MAX_ID, Code::NoError, "", self.out());
            write::ping(&LEAVING_PING, false, self.out());
        }
    }

    /// Ends the connection and its streams. Queues GOAWAY.
    pub fn close(&mut self, code: Code, why: &'static str) {
        // Some clients would take the end of the connection for a failure of these streams, which have been answered.
        for id in self.ended.take_unended() {
            write::reset(id, Code::NoError, self.out());
        }
        let told = if let Leaving::Final(last) = self.leaving { Some(last) } else { None };
        // It would repeat the last one.
        if !self.is_closed && (told.is_none() || code != Code::NoError) {
            write::goaway(told.unwrap_or(self.last_id), code, why, self.out());
        }
        self.lose();
    }

    /// Ends the streams without a word to the client: their tasks see them as reset.
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

    /// Registers the task that moves the socket's bytes, to be woken when there is something to write. It calls this at
    /// the end of each of its polls.
    pub fn register_driver(&mut self, cx: &Context<'_>) {
        self.is_driver_woken = false;
        wait(&mut self.driver, cx);
    }

    /// Wakes the task that moves the socket's bytes, once until it has [registered](Self::register_driver) again.
    fn wake_driver(&mut self) {
        if !std::mem::replace(&mut self.is_driver_woken, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }

    /// Ends the connection because of an error of the client.
    pub fn fail(&mut self, code: Code, why: &'static str) {
        if self.error.is_none() {
            // The client would repeat a request that GOAWAY calls unread.
            if let Some(block) = &self.block {
                self.last_id = self.last_id.max(block.id);
            }
            self.error = Some((code, why));
            self.close(code, why);
        }
    }

    // --- Frames.

    /// Takes the next frame, or what has come of it if it is DATA. Returns how many bytes that was, and the error that
    /// they made. `None`: too little has come.
    fn next_frame(&mut self, bytes: &[u8]) -> Option<(usize, Result<(), FrameError>)> {
        let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
        let head = Head::read(head);
        if head.len > MAX_PAYLOAD {
            let too_large = FrameError::Connection(Code::FrameSize, "a frame that is too large");
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
    fn may_come(&self, head: Head) -> Result<(), FrameError> {
        let protocol = |why| Err(FrameError::Connection(Code::Protocol, why));
        if !self.has_begun && !head.is_settings() {
            return protocol("a first frame that is not SETTINGS");
        }
        if self.block.is_some() != head.continues() {
            return protocol("fields that are not continued, or have no beginning");
        }
        Ok(())
    }

    fn frame(&mut self, head: Head, payload: &[u8]) -> Result<(), FrameError> {
        let protocol = |why| Err(FrameError::Connection(Code::Protocol, why));
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
            Frame::Priority { id, depends_on_itself: true } => Err(FrameError::Stream(id, Code::Protocol, OF_ITSELF)),
            Frame::Priority { .. } | Frame::Other => self.budgets.idle_frame(),
            Frame::Reset { id } => self.reset_by_client(id),
            Frame::Settings(payload) => self.settings(payload),
            Frame::SettingsAck => {
                self.knows_settings = true;
                self.budgets.idle_frame()
            }
            Frame::Ping(data) => {
                write::ping(&data, true, self.control());
                Ok(())
            }
            Frame::PingAck(data) => {
                if data == LEAVING_PING && self.leaving == Leaving::Announced {
                    let last = self.last_id;
                    self.leaving = Leaving::Final(last);
                    write::goaway(last, Code::NoError, "", self.out());
                }
                self.budgets.idle_frame()
            }
            Frame::GoAway => {
                self.is_client_leaving = true;
                self.budgets.idle_frame()
            }
            Frame::WindowUpdate { id, by } => {
                self.budgets.idle_frame()?;
                self.window_update(id, by.into())
            }
        }
    }

    fn continuation(&mut self, id: u32, more: &[u8], is_last: bool) -> Result<(), FrameError> {
        let Some(block) = &mut self.block else { return Ok(()) };
        if block.id != id {
            return Err(FrameError::Connection(Code::Protocol, "fields that are continued on another stream"));
        }
        block.continuations += 1;
        // Larger than what is answered 431, so that such a head can be read to its end.
        let max_bytes = (2 * self.list_bytes).max(MAX_PAYLOAD);
        let max_continuations = MAX_CONTINUATIONS + max_bytes / MAX_PAYLOAD;
        if block.continuations > max_continuations || block.bytes.len() + more.len() > max_bytes {
            return Err(FrameError::Connection(Code::EnhanceYourCalm, "fields without end"));
        }
        block.bytes.extend_from_slice(more);
        match self.block.take_if(|_| is_last) {
            Some(block) => self.fields(id, &block.bytes, block.is_end, block.depends_on_itself),
            None => Ok(()),
        }
    }

    /// A whole block of fields: the head of a request, or its trailers.
    fn fields(&mut self, id: u32, block: &[u8], is_end: bool, depends_on_itself: bool) -> Result<(), FrameError> {
        if id > self.last_id {
            return self.request(id, block, is_end, depends_on_itself);
        }
        let Some(at) = self.find(id) else {
            if self.ended.was_reset(id) {
                self.budgets.idle_frame()?;
                return self.skip(block);
            }
            if self.ended.end(id) {
                self.skip(block)?;
                return if is_end { Ok(()) } else { Err(FrameError::Stream(id, Code::Protocol, NOT_LAST)) };
            }
            return Err(match self.ended.has_ended(id) {
                true => FrameError::Connection(Code::StreamClosed, "fields on a stream that is closed"),
                false => FrameError::Connection(Code::Protocol, "a stream with a smaller number than others"),
            });
        };
        match (self.streams[at].reset, self.streams[at].input) {
            (Some(Reset::ByUs), _) => {
                self.budgets.idle_frame()?;
                self.skip(block)
            }
            (Some(Reset::ByClient), _) => {
                Err(FrameError::Connection(Code::StreamClosed, "fields on a stream that was reset"))
            }
            (None, Input::Ended) => {
                self.skip(block)?;
                Err(FrameError::Stream(id, Code::StreamClosed, "fields behind the end of a request"))
            }
            (None, Input::Open | Input::Dropped) => {
                let mut reader = TrailerReader::default();
                let fits = self.read(block, |name, value| reader.field(name, value))?;
                let stream = &mut self.streams[at];
                match reader.finish() {
                    // RFC 9113 §8.1.
                    Ok(trailers) if fits && is_end && !depends_on_itself => {
                        if stream.output != Output::Tunnel {
                            stream.trailers = trailers;
                        }
                        self.end_input(at)
                    }
                    trailers => {
                        let why = match trailers {
                            Err(why) => why,
                            Ok(_) if !fits => "trailers that are too large",
                            Ok(_) if !is_end => NOT_LAST,
                            Ok(_) => OF_ITSELF,
                        };
                        Err(FrameError::Stream(id, Code::Protocol, why))
                    }
                }
            }
        }
    }

    fn request(&mut self, id: u32, block: &[u8], is_end: bool, depends_on_itself: bool) -> Result<(), FrameError> {
        self.last_id = id;
        if let Leaving::Final(_) = self.leaving {
            self.ended.add_reset(id);
            self.budgets.idle_frame()?;
            return self.skip(block);
        }
        // `streams` has at most twice MAX_STREAMS.
        if self.streams.len() >= MAX_STREAMS && self.streams.iter().filter(|s| s.is_open()).count() >= MAX_STREAMS {
            self.skip(block)?;
            return self.refuse(id);
        }
        let mut reader = RequestReader::new(self.list_bytes);
        let fits = self.read(block, |name, value| reader.field(name, value))?;
        match reader.finish(is_end, fits) {
            Ok(request) if !depends_on_itself => {
                self.budgets.stream_opened();
                if request.is_too_large {
                    self.budgets.lose()?;
                }
                self.streams.push(Stream::new(id, request.declared, is_end, self.first_send_window));
                self.requests.push_back((id, request));
                Ok(())
            }
            other => Err(FrameError::Stream(id, Code::Protocol, other.err().unwrap_or(OF_ITSELF))),
        }
    }

    /// Refuses a request beyond the limit. The client may repeat it (RFC 9113 §8.7).
    fn refuse(&mut self, id: u32) -> Result<(), FrameError> {
        self.ended.add_reset(id);
        write::reset(id, Code::RefusedStream, self.control());
        // A client that does not know the limit yet may go beyond it.
        if self.knows_settings { self.budgets.refuse() } else { Ok(()) }
    }

    /// Decodes a block whose fields are not needed: it may change the dynamic table.
    fn skip(&mut self, block: &[u8]) -> Result<(), FrameError> {
        self.read(block, |_, _| {}).map(drop)
    }

    /// Decodes a block. False: its fields exceed the limit, and `field` did not get them all.
    fn read(&mut self, block: &[u8], field: impl FnMut(&[u8], &[u8])) -> Result<bool, FrameError> {
        self.decoder.read(block, self.list_bytes, field).map_err(|bad| match bad {
            BadBlock::TooLarge => FrameError::Connection(Code::EnhanceYourCalm, "fields that are far too large"),
            _ => FrameError::Connection(Code::Compression, "fields that cannot be decompressed"),
        })
    }

    fn reset_by_client(&mut self, id: u32) -> Result<(), FrameError> {
        if self.is_idle(id) {
            return Err(FrameError::Connection(Code::Protocol, "a reset of a stream without a head"));
        }
        self.ended.end(id);
        let Some(at) = self.find_unreset(id) else { return self.budgets.idle_frame() };
        let stream = &mut self.streams[at];
        stream.reset = Some(Reset::ByClient);
        let is_lost = stream.output == Output::Open;
        self.give_up(at);
        if is_lost { self.budgets.cancel() } else { Ok(()) }
    }

    /// A stream has been reset: its task is woken, or if it has none yet, the request is dropped.
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

    /// Removes a stream without a task, and remembers how it ended.
    fn remove(&mut self, id: u32) {
        let Some(at) = self.find(id) else { return };
        self.end_turn(at);
        let mut stream = self.streams.remove(at);
        self.release(stream.drop_content());
        self.extra_window += stream.extra_window;
        match (stream.reset, stream.input) {
            (Some(Reset::ByUs), _) => self.ended.add_reset(id),
            (None, Input::Open | Input::Dropped) => {
                if let Some(oldest) = self.ended.add_unended(id) {
                    write::reset(oldest, Code::NoError, self.control());
                }
            }
            _ => self.ended.add_ended(id),
        }
        self.call_next();
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), FrameError> {
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
                return Err(FrameError::Connection(Code::FlowControl, "a window beyond the largest"));
            }
            stream.send_window += by;
            stream.wake();
        }
        write::settings_ack(self.control());
        Ok(())
    }

    fn window_update(&mut self, id: u32, by: i64) -> Result<(), FrameError> {
        if id == 0 {
            if self.send_window + by > MAX_WINDOW {
                return Err(FrameError::Connection(Code::FlowControl, "a window beyond the largest"));
            }
            self.send_window += by;
            self.call_next();
            return Ok(());
        }
        if self.is_idle(id) {
            return Err(FrameError::Connection(Code::Protocol, "a window of a stream without a head"));
        }
        let Some(at) = self.find(id) else { return Ok(()) };
        let stream = &mut self.streams[at];
        if stream.send_window + by > MAX_WINDOW {
            return Err(FrameError::Stream(id, Code::FlowControl, "a window beyond the largest"));
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

    /// As [`Self::find`], if the stream was not reset.
    fn find_unreset(&self, id: u32) -> Option<usize> {
        self.find(id).filter(|&at| self.streams[at].reset.is_none())
    }

    /// Ends a stream because of an error of the client.
    fn fail_stream(&mut self, id: u32, code: Code, why: &'static str) {
        if self.is_idle(id) {
            return self.fail(code, "an error on a stream without a head");
        }
        let is_unserved = match self.find(id) {
            Some(at) => {
                let stream = &mut self.streams[at];
                if stream.reset == Some(Reset::ByUs) {
                    return;
                }
                stream.reset = Some(Reset::ByUs);
                self.give_up(at);
                self.find(id).is_none()
            }
            None => {
                let is_new = !self.ended.was_reset(id) && !self.ended.has_ended(id) && !self.ended.is_unended(id);
                self.ended.add_reset(id);
                is_new
            }
        };
        self.faults.push(Fault { why, is_unserved });
        write::reset(id, code, self.control());
        if let Err(FrameError::Connection(code, why)) = self.budgets.lose() {
            self.fail(code, why);
        }
    }

    /// Forgives the client `count` lost streams, since time has passed.
    pub fn forgive(&mut self, count: u32) {
        self.budgets.forgive(count);
    }

    /// The buffer of bytes to be written, to append to.
    fn out(&mut self) -> &mut Vec<u8> {
        if self.out.capacity() == 0 {
            self.out = buffers::take();
        }
        &mut self.out
    }

    /// The same, to append one control frame that the client has caused.
    fn control(&mut self) -> &mut Vec<u8> {
        // Each counts as the longest of them, a PING.
        self.controls.behind += HEAD_BYTES + 8;
        self.out()
    }

    // --- The streams' side. `Gone` if the stream no longer exists.

    /// Which window the client has to open before this stream can be sent more content, if any.
    pub fn shut_window(&self, id: u32) -> Option<ShutWindow> {
        let stream = &self.streams[self.find(id)?];
        match stream.send_window <= 0 {
            true => Some(ShutWindow::Stream),
            false => (!self.has_window()).then_some(ShutWindow::Connection),
        }
    }

    /// How many bytes a stream that waits for its turn would have sent since the last call, if turns were single bytes.
    /// `since`: the value of [`Self::share_now`] at that call, which is updated.
    pub fn share(&self, since: &mut u64) -> u64 {
        let bytes = self.share.wrapping_sub(*since) / SHARE_UNITS;
        *since = since.wrapping_add(bytes * SHARE_UNITS);
        bytes
    }

    /// The value that [`Self::share`] counts from.
    pub fn share_now(&self) -> u64 {
        self.share
    }

    /// Waits until the stream is reset.
    pub fn poll_reset(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Gone> {
        match self.find(id).map(|at| &mut self.streams[at]) {
            Some(stream) if stream.reset.is_none() => stream.wait(cx),
            _ => Poll::Ready(Gone),
        }
    }

    /// Waits until fields can be sent. The caller has some to send: when this is ready, it sends them at once or calls
    /// [`Self::stand_back`].
    pub fn poll_room(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        let Some(at) = self.find_unreset(id) else { return Poll::Ready(Err(Gone)) };
        self.poll_turn(at, Part::Fields, cx).map(Ok)
    }

    /// Waits until content can be sent. Returns how many bytes one frame may have. The caller has some to send: when
    /// this is ready, it sends them at once or calls [`Self::stand_back`].
    pub fn poll_window(&mut self, id: u32, cx: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
        let Some(at) = self.find_unreset(id) else { return Poll::Ready(Err(Gone)) };
        let stream = &mut self.streams[at];
        if stream.send_window <= 0 {
            // WINDOW_UPDATE or SETTINGS wakes it.
            let waits = stream.wait(cx);
            self.stand_back(id);
            return waits;
        }
        ready!(self.poll_turn(at, Part::Content, cx));
        Poll::Ready(Ok(self.frame_window(at)))
    }

    /// How many bytes of content can be sent in another frame without waiting.
    pub fn window(&self, id: u32) -> usize {
        let at = self.find(id).filter(|_| self.is_free(Part::Content));
        at.map_or(0, |at| self.frame_window(at))
    }

    fn frame_window(&self, at: usize) -> usize {
        self.send_window.min(self.streams[at].send_window).clamp(0, MAX_PAYLOAD as i64) as usize
    }

    /// The stream has nothing to send for now: it gives up its turn, or its place in the queue.
    pub fn stand_back(&mut self, id: u32) {
        if let Some(at) = self.find(id) {
            self.end_turn(at);
        }
        self.call_next();
    }

    /// Sends a head, whose fields `write` appends. This and the methods below send nothing on a stream that was reset.
    pub fn send_head(&mut self, id: u32, kind: HeadKind, is_end: bool, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(at) = self.find_unreset(id) else { return };
        match kind {
            HeadKind::Interim => {}
            HeadKind::Response => self.streams[at].output = Output::Begun,
            HeadKind::Tunnel => self.streams[at].output = Output::Tunnel,
        }
        self.send_fields(at, is_end, write);
    }

    /// Marks the response as our own. It makes up for no lost stream: such a response costs the client nothing, so that
    /// it could lose another stream for each.
    pub fn answer_ourselves(&mut self, id: u32) {
        if let Some(at) = self.find(id) {
            self.streams[at].is_own = true;
        }
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

    /// Begins a DATA frame. Returns its offset in [`Self::content`], to which the caller then appends at most what
    /// [`Self::poll_window`] allowed.
    pub fn begin_content(&mut self) -> usize {
        write::begin(self.out())
    }

    pub fn content(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Ends the DATA frame that begins at `start`. Without content and END_STREAM it is not sent.
    pub fn end_content(&mut self, start: usize, id: u32, is_end: bool) {
        let len = self.out.len() - start - HEAD_BYTES;
        let Some(at) = self.find_unreset(id).filter(|_| len > 0 || is_end) else { return self.drop_frame(start) };
        write::end_data(start, id, is_end, &mut self.out);
        if len > 0 {
            self.budgets.content_sent();
            self.share_out(len);
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
            if std::mem::replace(&mut stream.output, Output::Ended) != Output::Ended && !stream.is_own {
                self.budgets.forgive(1);
            }
            self.end_turn(at);
        }
        self.call_next();
        self.wake_driver();
    }

    /// Resets a stream.
    pub fn abort(&mut self, id: u32, code: Code) {
        if let Some(at) = self.find_unreset(id) {
            self.streams[at].reset = Some(Reset::ByUs);
            write::reset(id, code, self.control());
            self.response_end = self.out.len();
            self.end_turn(at);
            self.call_next();
        }
    }

    /// The task that served the stream is done. A stream that is not complete is reset.
    pub fn leave(&mut self, id: u32) {
        self.tasks -= 1;
        self.wake_driver();
        let Some(at) = self.find(id) else { return };
        let stream = &self.streams[at];
        match (stream.input, stream.output) {
            _ if self.is_closed => {}
            (Input::Ended, Output::Ended) => {}
            // All content has come; END_STREAM may follow in a frame of its own.
            (_, Output::Ended) if stream.declared == Some(0) => {}
            // The client need not send the rest (RFC 9113 §8.1).
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
}

#[cfg(test)]
mod tests;
