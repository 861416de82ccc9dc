//! HTTP/1.1 by the byte: what is sent is exactly what a test says, and what comes back is kept with the way it ended.
//! Deliberately simple and unforgiving; it is a witness, not a client.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use std::{fmt, io};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpMaxSeg;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::deadline::within;

/// Longest head that the harness reads.
const MAX_HEAD_BYTES: usize = 4 << 20;

/// A request, to be sent or as an origin received it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub version: String,
    pub fields: Fields,
    pub body: Vec<u8>,
}

/// A response as it came.
#[derive(Debug, Clone)]
pub struct Reply {
    pub version: String,
    pub status: u16,
    pub fields: Fields,
    pub body: Vec<u8>,
    pub end: End,
}

/// How a message's body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By its own framing, or by the close that its framing asks for.
    Complete,
    /// The connection closed before the framing's end.
    CutOff,
}

/// Header fields in the order and spelling in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(String, String)>);

/// A TCP connection that speaks HTTP/1.1, and what was read from it beyond the last message.
#[derive(Debug)]
pub struct Wire {
    pub stream: TcpStream,
    pub buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    ToClose,
}

/// First line and fields of a message.
#[derive(Debug)]
struct Head {
    first: [String; 3],
    fields: Fields,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            version: "HTTP/1.1".to_owned(),
            fields: Fields::default(),
            body: Vec::new(),
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    pub fn put(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self::new("PUT", target).body(body)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.0.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn json(self, value: &Value) -> Self {
        self.with("Content-Type", "application/json").body(value.to_string())
    }

    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }

    /// Head and body. `Host` and `Content-Length` are added where a sound request needs them; with
    /// `Transfer-Encoding` the body goes out in chunks of at most 1,000 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = self.fields.clone();
        if fields.get("host").is_none() {
            fields.0.insert(0, ("Host".to_owned(), "site.example".to_owned()));
        }
        let is_chunked = fields.get("transfer-encoding").is_some();
        let wants_length = !self.body.is_empty() || ["POST", "PUT", "PATCH"].contains(&self.method.as_str());
        if wants_length && !is_chunked && fields.get("content-length").is_none() {
            fields.0.push(("Content-Length".to_owned(), self.body.len().to_string()));
        }
        let mut bytes = format!("{} {} {}\r\n{fields}\r\n", self.method, self.target, self.version).into_bytes();
        match is_chunked {
            true => bytes.extend(chunked(&self.body)),
            false => bytes.extend_from_slice(&self.body),
        }
        bytes
    }
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body; panics with the whole reply when it is no JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.status, self.text()))
    }

    /// Name of the origin that answered.
    pub fn origin(&self) -> &str {
        self.field("x-origin").unwrap_or_else(|| panic!("no origin answered: {} {}", self.status, self.text()))
    }

    /// The value of a cookie that this response sets, with its attributes.
    pub fn set_cookie(&self, name: &str) -> Option<String> {
        let starts = format!("{name}=");
        self.fields.all("set-cookie").into_iter().find_map(|value| value.strip_prefix(&starts).map(str::to_owned))
    }
}

impl Fields {
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The value of a field that stands at most once; panics when it is repeated.
    pub fn get(&self, name: &str) -> Option<&str> {
        let values = self.all(name);
        assert!(values.len() < 2, "{name} is repeated: {values:?}");
        values.first().copied()
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, value)| write!(f, "{name}: {value}\r\n"))
    }
}

impl Wire {
    pub async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub async fn try_connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::new(stream))
    }

    /// Connects from one of this machine's addresses; every one of 127.0.0.0/8 will do.
    pub async fn connect_from(client: IpAddr, address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(client, 0)).expect("an address of this machine");
        Self::new(within("connect", socket.connect(address)).await.expect("a listener"))
    }

    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("send", self.stream.write_all(bytes.as_ref())).await.expect("a peer that reads");
    }

    /// Sends a request and reads its response, at the same time: a peer may answer before it has read everything.
    pub async fn exchange(&mut self, request: &Request) -> Reply {
        match within("a response", self.try_exchange(request)).await {
            Ok(reply) => reply,
            Err(error) => panic!("no response to {} {}: {error}", request.method, request.target),
        }
    }

    pub async fn try_exchange(&mut self, request: &Request) -> io::Result<Reply> {
        let bytes = request.to_bytes();
        if bytes.len() <= 16 << 10 {
            self.stream.write_all(&bytes).await?;
            return self.try_reply(&request.method).await;
        }
        let Self { stream, buffer } = self;
        let (mut reader, mut writer) = stream.split();
        let sending = async {
            // A peer that refuses the request may close before it has all of it; its answer is what counts.
            let _ = writer.write_all(&bytes).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            reply = read_reply(&mut reader, buffer, &request.method) => reply,
            () = sending => unreachable!("sending never ends"),
        }
    }

    /// The response to a request of another method than HEAD.
    pub async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub async fn reply_to(&mut self, method: &str) -> Reply {
        within("a response", self.try_reply(method)).await.expect("a response")
    }

    pub async fn try_reply(&mut self, method: &str) -> io::Result<Reply> {
        read_reply(&mut self.stream, &mut self.buffer, method).await
    }

    /// The head of the next response, its body still to come; its `body` is empty.
    pub async fn reply_head(&mut self) -> Reply {
        let head = within("the head of a response", read_head(&mut self.stream, &mut self.buffer)).await;
        reply_of(head.expect("a response").expect("a response")).expect("a status line")
    }

    /// Whatever comes until the peer closes; the flag says whether it closed in order rather than by a reset.
    pub async fn rest(&mut self) -> (Vec<u8>, bool) {
        let read = async {
            let mut rest = std::mem::take(&mut self.buffer);
            let ended = self.stream.read_to_end(&mut rest).await;
            (rest, ended.is_ok())
        };
        within("the end of the connection", read).await
    }

    /// Waits for the next bytes, or the end, for this time at most; reads nothing. Whether they came.
    pub async fn has_answer_within(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.stream.peek(&mut [0])).await.is_ok()
    }

    /// Whether the peer closed, in whatever way, without another byte.
    pub async fn is_closed(&mut self) -> bool {
        self.rest().await.0.is_empty()
    }

    /// Reads and discards up to `max` bytes. Returns how many.
    pub async fn sip(&mut self, max: usize) -> usize {
        // A peer that has closed has nothing to sip.
        within("a sip", self.stream.read(&mut vec![0; max])).await.unwrap_or(0)
    }

    /// Says that nothing more will be sent.
    pub async fn close_sending(&mut self) {
        self.stream.shutdown().await.expect("an open connection");
    }

    /// Ends the connection with a reset.
    pub fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }

    /// The next request's head, without its body; `None` at the end of the connection.
    pub async fn request_head(&mut self) -> io::Result<Option<Request>> {
        let Some(Head { first: [method, target, version], fields }) =
            read_head(&mut self.stream, &mut self.buffer).await?
        else {
            return Ok(None);
        };
        Ok(Some(Request { method, target, version, fields, body: Vec::new() }))
    }

    /// The body that belongs to a request's head.
    pub async fn request_body(&mut self, head: &Request) -> io::Result<(Vec<u8>, End)> {
        let framing = match framing(&head.fields)? {
            Framing::ToClose => Framing::Length(0),
            framing => framing,
        };
        read_body(&mut self.stream, &mut self.buffer, framing).await
    }
}

/// Connects so that little of what is not read waits here. The larger the segments, in bytes, the more waits at the
/// peer.
pub async fn narrow(address: SocketAddr, segment: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(20_000).expect("an option of every socket");
    setsockopt(&socket, TcpMaxSeg, &segment).expect("an option of every socket of TCP");
    within("connect", socket.connect(address)).await.expect("a listener")
}

/// A body in chunks of at most 1,000 bytes.
pub fn chunked(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(body.len() + body.len() / 100 + 5);
    for chunk in body.chunks(1000) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

async fn read_reply(reader: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>, method: &str) -> io::Result<Reply> {
    loop {
        let head = read_head(reader, buffer).await?;
        let mut reply = reply_of(head.ok_or_else(|| invalid("closed without a response".to_owned()))?)?;
        if reply.status == 101 {
            return Ok(reply);
        }
        if (100..200).contains(&reply.status) {
            continue;
        }
        let framing = match (method, reply.status) {
            ("HEAD", _) | (_, 204 | 304) => Framing::Length(0),
            _ => framing(&reply.fields)?,
        };
        (reply.body, reply.end) = read_body(reader, buffer, framing).await?;
        return Ok(reply);
    }
}

fn reply_of(Head { first: [version, status, _], fields }: Head) -> io::Result<Reply> {
    let status = status.parse().map_err(|_| invalid(format!("no status: {status:?}")))?;
    Ok(Reply { version, status, fields, body: Vec::new(), end: End::Complete })
}

async fn read_head(reader: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<Option<Head>> {
    loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            let rest = buffer.split_off(end + 4);
            let head = std::mem::replace(buffer, rest);
            return parse_head(&head[..end]).map(Some);
        }
        if buffer.len() > MAX_HEAD_BYTES {
            return Err(invalid("the head does not end".to_owned()));
        }
        if reader.read_buf(buffer).await? == 0 {
            return match buffer.is_empty() {
                true => Ok(None),
                false => Err(invalid(format!("closed within a head: {:?}", String::from_utf8_lossy(buffer)))),
            };
        }
    }
}

fn parse_head(head: &[u8]) -> io::Result<Head> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().splitn(3, ' ').map(str::to_owned);
    let first = [(); 3].map(|()| words.next().unwrap_or_default());
    let field = |line: &str| match line.split_once(':') {
        Some((name, value)) => Ok((name.to_owned(), value.trim().to_owned())),
        None => Err(invalid(format!("no field: {line:?}"))),
    };
    Ok(Head { first, fields: Fields(lines.map(field).collect::<io::Result<_>>()?) })
}

fn framing(fields: &Fields) -> io::Result<Framing> {
    match (fields.get("transfer-encoding"), fields.get("content-length")) {
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        (None, Some(length)) => {
            length.parse().map(Framing::Length).map_err(|_| invalid(format!("no length: {length:?}")))
        }
        (None, None) => Ok(Framing::ToClose),
        both => Err(invalid(format!("ambiguous framing: {both:?}"))),
    }
}

async fn read_body(
    reader: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut Vec<u8>,
    framing: Framing,
) -> io::Result<(Vec<u8>, End)> {
    match framing {
        Framing::Length(length) => {
            let is_whole = fill(reader, buffer, length).await;
            let rest = buffer.split_off(length.min(buffer.len()));
            let body = std::mem::replace(buffer, rest);
            Ok((body, if is_whole { End::Complete } else { End::CutOff }))
        }
        Framing::ToClose => {
            let mut body = std::mem::take(buffer);
            let ended = reader.read_to_end(&mut body).await;
            Ok((body, if ended.is_ok() { End::Complete } else { End::CutOff }))
        }
        Framing::Chunked => read_chunks(reader, buffer).await,
    }
}

async fn read_chunks(reader: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<(Vec<u8>, End)> {
    let mut body = Vec::new();
    loop {
        let Some(line) = read_line(reader, buffer).await? else { return Ok((body, End::CutOff)) };
        let size = line.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(|_| invalid(format!("no chunk size: {line:?}")))?;
        if size == 0 {
            // Trailers, then an empty line.
            loop {
                match read_line(reader, buffer).await? {
                    None => return Ok((body, End::CutOff)),
                    Some(line) if line.is_empty() => return Ok((body, End::Complete)),
                    Some(_) => {}
                }
            }
        }
        if !fill(reader, buffer, size + 2).await {
            body.extend(buffer.drain(..).take(size));
            return Ok((body, End::CutOff));
        }
        body.extend_from_slice(&buffer[..size]);
        if &buffer[size..size + 2] != b"\r\n" {
            return Err(invalid("a chunk is longer than it says".to_owned()));
        }
        buffer.drain(..size + 2);
    }
}

async fn read_line(reader: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = find(buffer, b"\r\n") {
            let line = String::from_utf8_lossy(&buffer[..end]).into_owned();
            buffer.drain(..end + 2);
            return Ok(Some(line));
        }
        if !matches!(reader.read_buf(buffer).await, Ok(1..)) {
            return Ok(None);
        }
    }
}

/// Reads until `buffer` holds `length` bytes; whether it does.
async fn fill(reader: &mut (impl AsyncReadExt + Unpin), buffer: &mut Vec<u8>, length: usize) -> bool {
    buffer.reserve(length.saturating_sub(buffer.len()).min(64 << 20));
    while buffer.len() < length {
        if !matches!(reader.read_buf(buffer).await, Ok(1..)) {
            return false;
        }
    }
    true
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}
