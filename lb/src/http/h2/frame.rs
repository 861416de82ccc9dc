//! Reads and writes frames of HTTP/2 (RFC 9113 §4 and §6) in byte slices. Errors of a frame by itself are found here;
//! whether it may come at this point is checked by [`super::connection`].

/// Maximum length of a payload, both ways: SETTINGS_MAX_FRAME_SIZE at its initial value (RFC 9113 §4.2).
pub const MAX_PAYLOAD: usize = 16_384;
pub const HEAD_BYTES: usize = 9;
/// The largest window (RFC 9113 §6.9.1).
pub const MAX_WINDOW: i64 = (1 << 31) - 1;
/// The initial window (RFC 9113 §6.9.2).
pub const FIRST_WINDOW: i64 = 65_535;
/// The largest id of a stream.
pub const MAX_ID: u32 = (1 << 31) - 1;

/// The client's connection preface, but for its SETTINGS frame (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A flag of DATA and HEADERS. [`ACK`] of SETTINGS and PING is the same bit.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const WITH_PRIORITY: u8 = 0x20;

/// Why a stream or a connection ends (RFC 9113 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    NoError = 0,
    Protocol = 1,
    Internal = 2,
    FlowControl = 3,
    StreamClosed = 5,
    FrameSize = 6,
    RefusedStream = 7,
    Cancel = 8,
    Compression = 9,
    EnhanceYourCalm = 11,
}

impl Code {
    /// For logs and metrics, if it is an error of a client's that ends a connection.
    pub fn word(self) -> &'static str {
        match self {
            Self::Protocol => "protocol-error",
            Self::FlowControl => "flow-control-error",
            Self::StreamClosed => "stream-closed",
            Self::FrameSize => "frame-size-error",
            Self::Compression => "compression-error",
            Self::EnhanceYourCalm => "enhance-your-calm",
            Self::NoError => "no-error",
            Self::Internal => "internal-error",
            Self::RefusedStream => "refused-stream",
            Self::Cancel => "cancel",
        }
    }
}

/// An error of a frame, or of the order of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The connection ends (RFC 9113 §5.4.1). The text is for GOAWAY and the log.
    Connection(Code, &'static str),
    /// The stream is reset (RFC 9113 §5.4.2). The text is for the log.
    Stream(u32, Code, &'static str),
}

const fn protocol(why: &'static str) -> FrameError {
    FrameError::Connection(Code::Protocol, why)
}

const BAD_SIZE_TEXT: &str = "a frame of another size than its kind has";
const NO_WINDOW_TEXT: &str = "a window opened by nothing";
const BAD_SIZE: FrameError = FrameError::Connection(Code::FrameSize, BAD_SIZE_TEXT);
const OF_NO_STREAM: FrameError = protocol("a frame of a stream on none");
const TOO_MUCH_PADDING: FrameError = protocol("more padding than the frame has");

/// The first nine bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    pub len: usize,
    kind: u8,
    flags: u8,
    id: u32,
}

/// A DATA frame of a client, whose payload is read as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataFrame {
    pub id: u32,
    /// How many bytes of content come first, and how many of padding behind them.
    pub content: usize,
    pub padding: usize,
    /// How much of the windows the frame uses up: content, padding, and the byte with the padding's length.
    pub size: usize,
    pub is_end: bool,
}

/// A frame from a client, but for [`DataFrame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// `is_last`: no CONTINUATION follows. `depends_on_itself`: it has a priority that says so.
    Headers {
        id: u32,
        block: &'a [u8],
        is_end: bool,
        is_last: bool,
        depends_on_itself: bool,
    },
    Continuation {
        id: u32,
        block: &'a [u8],
        is_last: bool,
    },
    Priority {
        id: u32,
        depends_on_itself: bool,
    },
    Reset {
        id: u32,
    },
    Settings(&'a [u8]),
    SettingsAck,
    Ping([u8; 8]),
    PingAck([u8; 8]),
    GoAway,
    WindowUpdate {
        id: u32,
        by: u32,
    },
    /// Of an unknown kind, or of one that means nothing to a server.
    Other,
}

impl Head {
    pub fn read(bytes: &[u8; HEAD_BYTES]) -> Head {
        let [a, b, c, kind, flags, id @ ..] = *bytes;
        Head { len: u32::from_be_bytes([0, a, b, c]) as usize, kind, flags, id: u32::from_be_bytes(id) & MAX_ID }
    }

    fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it is a CONTINUATION.
    pub fn continues(self) -> bool {
        self.kind == CONTINUATION
    }

    /// Whether it is a SETTINGS frame that acknowledges none.
    pub fn is_settings(self) -> bool {
        self.kind == SETTINGS && !self.has(ACK)
    }

    /// Whether it is a DATA frame.
    pub fn is_data(self) -> bool {
        self.kind == DATA
    }

    /// The DATA frame whose payload begins with these bytes. `None`: the length of its padding has not come yet.
    pub fn data(self, payload: &[u8]) -> Result<Option<DataFrame>, FrameError> {
        let Self { len, id, .. } = self;
        if id == 0 {
            return Err(OF_NO_STREAM);
        }
        let (before, padding) = match (self.has(PADDED), payload.first()) {
            (false, _) => (0, 0),
            (true, _) if len == 0 => return Err(BAD_SIZE),
            (true, None) => return Ok(None),
            (true, Some(&padding)) => (1, usize::from(padding)),
        };
        let content = len.checked_sub(before + padding).ok_or(TOO_MUCH_PADDING)?;
        Ok(Some(DataFrame { id, content, padding, size: len, is_end: self.has(END_STREAM) }))
    }

    /// Reads the payload of any other frame, all of it.
    pub fn frame(self, payload: &[u8]) -> Result<Frame<'_>, FrameError> {
        let id = self.id;
        match self.kind {
            HEADERS | CONTINUATION | PRIORITY | RST_STREAM if id == 0 => Err(OF_NO_STREAM),
            SETTINGS | PING | GOAWAY if id != 0 => Err(protocol("a frame of the connection on a stream")),
            HEADERS => {
                let mut block = self.without_padding(payload)?;
                let mut depends_on_itself = false;
                if self.has(WITH_PRIORITY) {
                    let (priority, rest) = block.split_first_chunk::<5>().ok_or(BAD_SIZE)?;
                    depends_on_itself = dependency(priority) == id;
                    block = rest;
                }
                let (is_end, is_last) = (self.has(END_STREAM), self.has(END_HEADERS));
                Ok(Frame::Headers { id, block, is_end, is_last, depends_on_itself })
            }
            CONTINUATION => Ok(Frame::Continuation { id, block: payload, is_last: self.has(END_HEADERS) }),
            PRIORITY => {
                let priority =
                    payload.try_into().map_err(|_| FrameError::Stream(id, Code::FrameSize, BAD_SIZE_TEXT))?;
                Ok(Frame::Priority { id, depends_on_itself: dependency(priority) == id })
            }
            RST_STREAM if payload.len() == 4 => Ok(Frame::Reset { id }),
            SETTINGS if self.has(ACK) && payload.is_empty() => Ok(Frame::SettingsAck),
            SETTINGS if !self.has(ACK) && payload.len().is_multiple_of(6) => Ok(Frame::Settings(payload)),
            PUSH_PROMISE => Err(protocol("PUSH_PROMISE from a client")),
            PING => {
                let data = payload.try_into().map_err(|_| BAD_SIZE)?;
                Ok(if self.has(ACK) { Frame::PingAck(data) } else { Frame::Ping(data) })
            }
            GOAWAY if payload.len() >= 8 => Ok(Frame::GoAway),
            WINDOW_UPDATE => {
                let by = u32::from_be_bytes(payload.try_into().map_err(|_| BAD_SIZE)?) & MAX_ID;
                match (by, id) {
                    (0, 0) => Err(protocol(NO_WINDOW_TEXT)),
                    (0, _) => Err(FrameError::Stream(id, Code::Protocol, NO_WINDOW_TEXT)),
                    _ => Ok(Frame::WindowUpdate { id, by }),
                }
            }
            RST_STREAM | SETTINGS | GOAWAY => Err(BAD_SIZE),
            _ => Ok(Frame::Other),
        }
    }

    fn without_padding(self, payload: &[u8]) -> Result<&[u8], FrameError> {
        if !self.has(PADDED) {
            return Ok(payload);
        }
        let (&padding, rest) = payload.split_first().ok_or(BAD_SIZE)?;
        let len = rest.len().checked_sub(usize::from(padding));
        len.and_then(|len| rest.get(..len)).ok_or(TOO_MUCH_PADDING)
    }
}

/// Any frame, valid or not.
#[cfg(test)]
pub fn raw(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    write::frame(kind, flags, id, &[payload], &mut out);
    out
}

/// Whether a frame that begins with these bytes is DATA.
pub fn begins_content(bytes: &[u8]) -> bool {
    bytes.get(3) == Some(&DATA)
}

/// The stream that this one depends on. All else of priorities is deprecated (RFC 9113 §5.3.2).
fn dependency(priority: &[u8; 5]) -> u32 {
    let [a, b, c, d, _] = *priority;
    u32::from_be_bytes([a, b, c, d]) & MAX_ID
}

/// A client's setting that changes what we do (RFC 9113 §6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    HeaderTableSize,
    InitialWindowSize(i64),
}

/// The settings of a frame. Those that change nothing here are checked and left out.
pub fn settings(payload: &[u8]) -> impl Iterator<Item = Result<Setting, FrameError>> {
    payload.as_chunks::<6>().0.iter().filter_map(|&[a, b, value @ ..]| {
        let value = u32::from_be_bytes(value);
        match u16::from_be_bytes([a, b]) {
            1 => Some(Ok(Setting::HeaderTableSize)),
            2 if value > 1 => Some(Err(protocol("ENABLE_PUSH that is neither 0 nor 1"))),
            4 if i64::from(value) > MAX_WINDOW => {
                Some(Err(FrameError::Connection(Code::FlowControl, "INITIAL_WINDOW_SIZE beyond the largest window")))
            }
            4 => Some(Ok(Setting::InitialWindowSize(value.into()))),
            5 if !(MAX_PAYLOAD as u32..1 << 24).contains(&value) => {
                Some(Err(protocol("MAX_FRAME_SIZE out of its range")))
            }
            _ => None,
        }
    })
}

/// What is sent. Each writer appends a whole frame.
pub mod write {
    use super::*;

    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;

    pub(super) fn frame(kind: u8, flags: u8, id: u32, payload: &[&[u8]], out: &mut Vec<u8>) {
        let len = payload.iter().map(|piece| piece.len()).sum();
        out.extend_from_slice(&head(len, kind, flags, id));
        payload.iter().for_each(|piece| out.extend_from_slice(piece));
    }

    fn head(len: usize, kind: u8, flags: u8, id: u32) -> [u8; HEAD_BYTES] {
        debug_assert!(len <= MAX_PAYLOAD);
        let [_, a, b, c] = (len as u32).to_be_bytes();
        let [d, e, f, g] = id.to_be_bytes();
        [a, b, c, kind, flags, d, e, f, g]
    }

    pub fn settings(settings: &[(u16, u32)], out: &mut Vec<u8>) {
        out.extend_from_slice(&head(6 * settings.len(), SETTINGS, 0, 0));
        for (name, value) in settings {
            out.extend_from_slice(&name.to_be_bytes());
            out.extend_from_slice(&value.to_be_bytes());
        }
    }

    pub fn settings_ack(out: &mut Vec<u8>) {
        frame(SETTINGS, ACK, 0, &[], out);
    }

    pub fn ping(data: &[u8; 8], is_ack: bool, out: &mut Vec<u8>) {
        frame(PING, if is_ack { ACK } else { 0 }, 0, &[data], out);
    }

    pub fn goaway(last: u32, code: Code, why: &str, out: &mut Vec<u8>) {
        frame(GOAWAY, 0, 0, &[&last.to_be_bytes(), &(code as u32).to_be_bytes(), why.as_bytes()], out);
    }

    pub fn window_update(id: u32, by: u32, out: &mut Vec<u8>) {
        frame(WINDOW_UPDATE, 0, id, &[&by.to_be_bytes()], out);
    }

    pub fn reset(id: u32, code: Code, out: &mut Vec<u8>) {
        frame(RST_STREAM, 0, id, &[&(code as u32).to_be_bytes()], out);
    }

    /// Begins a frame, whose payload is appended next. Returns its offset.
    pub fn begin(out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(&[0; HEAD_BYTES]);
        start
    }

    /// Ends a DATA frame that [`begin`] began.
    pub fn end_data(start: usize, id: u32, is_end: bool, out: &mut [u8]) {
        let len = out.len() - start - HEAD_BYTES;
        out[start..start + HEAD_BYTES].copy_from_slice(&head(len, DATA, u8::from(is_end) * END_STREAM, id));
    }

    /// Ends a HEADERS frame that [`begin`] began, with as many CONTINUATION frames as it needs.
    pub fn end_headers(start: usize, id: u32, is_end: bool, out: &mut Vec<u8>) {
        let flags = u8::from(is_end) * END_STREAM;
        let len = out.len() - start - HEAD_BYTES;
        if len <= MAX_PAYLOAD {
            out[start..start + HEAD_BYTES].copy_from_slice(&head(len, HEADERS, flags | END_HEADERS, id));
            return;
        }
        let block = out.split_off(start + HEAD_BYTES);
        out.truncate(start);
        let count = block.len().div_ceil(MAX_PAYLOAD);
        for (at, piece) in block.chunks(MAX_PAYLOAD).enumerate() {
            let end = if at + 1 == count { END_HEADERS } else { 0 };
            match at {
                0 => frame(HEADERS, flags, id, &[piece], out),
                _ => frame(CONTINUATION, end, id, &[piece], out),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
        let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>().expect("a head");
        let head = Head::read(head);
        assert_eq!(head.len, payload.len());
        head.frame(payload)
    }

    fn data(bytes: &[u8]) -> Result<Option<DataFrame>, FrameError> {
        let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>().expect("a head");
        let head = Head::read(head);
        assert!(head.is_data());
        head.data(payload)
    }

    #[test]
    fn padding_and_priority_are_taken_off() {
        assert_eq!(
            data(b"\0\0\x06\0\x09\0\0\0\x01\x02abc\0\0"),
            Ok(Some(DataFrame { id: 1, content: 3, padding: 2, size: 6, is_end: true }))
        );
        assert_eq!(data(b"\0\0\x06\0\x09\0\0\0\x01"), Ok(None));
        assert_eq!(
            data(b"\0\0\x06\0\0\0\0\0\x01"),
            Ok(Some(DataFrame { id: 1, content: 6, padding: 0, size: 6, is_end: false }))
        );
        let headers =
            |depends_on_itself| Frame::Headers { id: 1, block: b"x", is_end: false, is_last: true, depends_on_itself };
        assert_eq!(read(b"\0\0\x08\x01\x2c\0\0\0\x01\x01\x80\0\0\0\x10x\0"), Ok(headers(false)));
        assert_eq!(read(b"\0\0\x06\x01\x24\0\0\0\x01\0\0\0\x01\x10x"), Ok(headers(true)));
        assert!(data(b"\0\0\x02\0\x08\0\0\0\x01\x02a").is_err());
        assert!(data(b"\0\0\0\0\x08\0\0\0\x01").is_err());
        assert!(data(b"\0\0\x02\0\0\0\0\0\0ab").is_err());
        assert!(read(b"\0\0\x02\x01\x20\0\0\0\x01ab").is_err());
    }

    #[test]
    fn sizes_and_streams_have_to_fit_the_kind() {
        let size = Err(BAD_SIZE);
        assert_eq!(read(b"\0\0\x03\x03\0\0\0\0\x01abc"), size);
        assert_eq!(read(b"\0\0\x05\x04\0\0\0\0\0abcde"), size);
        assert_eq!(read(b"\0\0\x06\x04\x01\0\0\0\0abcdef"), size);
        assert_eq!(read(b"\0\0\x07\x06\0\0\0\0\0abcdefg"), size);
        assert_eq!(read(b"\0\0\x07\x07\0\0\0\0\0abcdefg"), size);
        assert_eq!(read(b"\0\0\x03\x08\0\0\0\0\0abc"), size);
        assert_eq!(read(b"\0\0\x04\x02\0\0\0\0\x03abcd"), Err(FrameError::Stream(3, Code::FrameSize, BAD_SIZE_TEXT)));
        for kind in [HEADERS, PRIORITY, RST_STREAM, CONTINUATION] {
            assert!(
                matches!(read(&[0, 0, 0, kind, 0, 0, 0, 0, 0]), Err(FrameError::Connection(Code::Protocol, _))),
                "{kind}"
            );
        }
        for kind in [SETTINGS, PING, GOAWAY, PUSH_PROMISE] {
            assert!(
                matches!(read(&[0, 0, 0, kind, 0, 0, 0, 0, 1]), Err(FrameError::Connection(Code::Protocol, _))),
                "{kind}"
            );
        }
        assert_eq!(read(&[0, 0, 0, 0xbe, 0, 0, 0, 0, 1]), Ok(Frame::Other));
        assert_eq!(
            read(b"\0\0\x04\x08\0\0\0\0\x01\0\0\0\0"),
            Err(FrameError::Stream(1, Code::Protocol, NO_WINDOW_TEXT))
        );
        assert_eq!(read(b"\0\0\x04\x08\0\x80\0\0\x01\x80\0\0\x07"), Ok(Frame::WindowUpdate { id: 1, by: 7 }));
    }

    #[test]
    fn errors_of_clients_are_counted_by_words_that_metrics_know() {
        use Code::{Compression, EnhanceYourCalm, FlowControl, FrameSize, Protocol, StreamClosed};
        for code in [Compression, EnhanceYourCalm, FlowControl, FrameSize, Protocol, StreamClosed] {
            assert!(crate::metrics::HTTP2_ERRORS.contains(&code.word()), "{code:?}");
        }
    }

    #[test]
    fn a_long_head_is_continued() {
        for len in [0, MAX_PAYLOAD, MAX_PAYLOAD + 1, 2 * MAX_PAYLOAD, 2 * MAX_PAYLOAD + 5] {
            let mut out = b"before".to_vec();
            let start = write::begin(&mut out);
            out.resize(out.len() + len, b'x');
            write::end_headers(start, 7, true, &mut out);
            let (mut rest, mut found, mut is_over) = (&out[6..], 0, false);
            while let Some((head, tail)) = rest.split_first_chunk::<HEAD_BYTES>() {
                let head = Head::read(head);
                assert!(!is_over);
                match (found, head.frame(&tail[..head.len]).expect("a frame")) {
                    (0, Frame::Headers { id: 7, block, is_end: true, is_last, .. }) => {
                        (found, is_over) = (block.len(), is_last);
                    }
                    (1.., Frame::Continuation { id: 7, block, is_last }) => {
                        (found, is_over) = (found + block.len(), is_last);
                    }
                    other => panic!("{other:?}"),
                }
                rest = &tail[head.len..];
            }
            assert_eq!((found, is_over), (len, true));
        }
    }
}
