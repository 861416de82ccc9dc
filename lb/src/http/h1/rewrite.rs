//! Heads for the other side, written straight from the parsed offsets: one pass over the fields, no allocation but the
//! output's growth.
//!
//! What speaks of one connection only is never copied. First line, framing and connection fields are made anew from
//! what was understood, hop-by-hop fields and those that Connection names end here (RFC 9110 §7.6.1), and whatever the
//! balancer has to say comes in as a list of [`Change`]s. Lines that already read as we would write them are copied in
//! runs, so a head with little to change costs a few moves of memory.

use super::head::{RequestHead, TargetForm};
use super::response::ResponseHead;
use crate::message::ascii::{self, TARGET};
use crate::message::field::{Fields, Span};
use crate::message::framing::Framing;
use crate::message::name::{Name, NameSet};
use crate::message::{self, Version};

/// Fields that are written anew or not at all, on both sides.
const OWN: NameSet = NameSet::of(&[
    Name::Connection,
    Name::ContentLength,
    Name::KeepAlive,
    Name::ProxyAuthenticate,
    Name::ProxyAuthorization,
    Name::ProxyConnection,
    Name::Te,
    Name::Trailer,
    Name::TransferEncoding,
    Name::Upgrade,
]);

/// And in requests.
const OWN_IN_REQUESTS: NameSet = OWN.with(Name::Expect).with(Name::Host).with(Name::Http2Settings);

/// Room for what is written besides fields and changes: first line, framing, connection, date.
const SPARE_BYTES: usize = 256;

/// The name of a field that may be changed: any but those this module writes itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldName<'a> {
    text: &'a [u8],
    known: Name,
}

impl<'a> FieldName<'a> {
    /// `text` as a name to write, `None` if it is not a token or not the caller's to change.
    pub fn new(text: &'a [u8]) -> Option<FieldName<'a>> {
        ascii::is_token(text).then(|| Self::of_token(text, Name::of(text))).flatten()
    }

    /// The same of a token, and which known name that is.
    #[inline]
    pub fn of_token(text: &'a [u8], known: Name) -> Option<FieldName<'a>> {
        debug_assert!(ascii::is_token(text) && known == Name::of(text));
        (!OWN_IN_REQUESTS.has(known)).then_some(FieldName { text, known })
    }
}

impl FieldName<'_> {
    /// Whether both are the same, whatever their case.
    pub fn is_same(self, other: FieldName<'_>) -> bool {
        self.known == other.known && ascii::same_token(self.text, other.text)
    }
}

impl FieldName<'static> {
    /// A name the balancer knows, for constants.
    ///
    /// # Panics
    ///
    /// If it is [`Name::Other`] or not the caller's to change.
    pub const fn known(known: Name) -> FieldName<'static> {
        assert!(!matches!(known, Name::Other) && !OWN_IN_REQUESTS.has(known));
        FieldName { text: known.text().as_bytes(), known }
    }
}

/// A field value that cannot break out of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldValue<'a>(&'a [u8]);

impl<'a> FieldValue<'a> {
    /// `value`, `None` if it holds a line break or another control byte.
    #[inline]
    pub fn new(value: &'a [u8]) -> Option<FieldValue<'a>> {
        ascii::is_text(value).then_some(FieldValue(value))
    }
}

impl<'a> FieldValue<'a> {
    pub fn get(self) -> &'a [u8] {
        self.0
    }
}

/// Whole field lines that were made beforehand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lines<'a> {
    text: &'a [u8],
    replaced: NameSet,
    added: NameSet,
}

impl<'a> Lines<'a> {
    /// `text` is lines as they are sent, `Name: value` and the line's end each, with names and values that could stand
    /// in a [`Change`]. Fields of the names `replaced` give way to them, whether there is such a line or not; those of
    /// `added` are passed on beside them.
    pub fn new(text: &'a [u8], replaced: NameSet, added: NameSet) -> Self {
        let lines = Self { text, replaced, added };
        debug_assert!(
            lines.iter().all(|(name, value)| FieldName::new(name).is_some() && FieldValue::new(value).is_some())
        );
        lines
    }

    /// Whether they say anything of the fields of this name.
    pub fn concern(self, name: FieldName<'_>) -> bool {
        self.replaced.has(name.known) || self.added.has(name.known)
    }

    /// The same, as changes one by one.
    pub fn changes(self) -> impl Iterator<Item = Change<'a>> {
        let removed = self.replaced.iter().filter_map(|name| FieldName::new(name.text().as_bytes()));
        let removed = removed.map(|name| Change { name, edit: Edit::Remove });
        removed.chain(self.iter().filter_map(move |(name, value)| {
            let (name, value) = (FieldName::new(name)?, FieldValue::new(value)?);
            let edit = if self.replaced.has(name.known) { Edit::Set(value) } else { Edit::Add(value) };
            Some(Change { name, edit })
        }))
    }

    fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.text.split(|&byte| byte == b'\n').filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            Some((line.get(..colon)?, line.get(colon + 2..)?.strip_suffix(b"\r")?))
        })
    }
}

/// A path with query to ask the backend for in place of the one received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a>(&'a [u8]);

impl<'a> Target<'a> {
    /// `target`, `None` if it does not begin with `/` or holds what a request target cannot.
    pub fn new(target: &'a [u8]) -> Option<Target<'a>> {
        let sound = target.first() == Some(&b'/') && target.iter().all(|&byte| ascii::is(byte, TARGET));
        sound.then_some(Target(target))
    }
}

/// One thing to do to the fields of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// Whose fields.
    pub name: FieldName<'a>,
    /// What becomes of them.
    pub edit: Edit<'a>,
}

/// What to do to the fields of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit<'a> {
    /// Those received give way to this one.
    Set(FieldValue<'a>),
    /// Those received become one list, and this its last element.
    Append(FieldValue<'a>),
    /// Those received are passed on, and this one too.
    Add(FieldValue<'a>),
    /// This one is sent where none was received.
    SetIfMissing(FieldValue<'a>),
    /// Those received end here.
    Remove,
}

impl Edit<'_> {
    /// Whether those received give way to it.
    fn replaces(&self) -> bool {
        !matches!(self, Edit::Add(_) | Edit::SetIfMissing(_))
    }
}

impl Change<'_> {
    /// Fills a place in a list of changes that is not used.
    pub const NOTHING: Change<'static> = Change { name: FieldName::known(Name::SetCookie), edit: Edit::Remove };

    fn value_len(&self) -> usize {
        match self.edit {
            Edit::Set(value) | Edit::Append(value) | Edit::Add(value) | Edit::SetIfMissing(value) => value.0.len(),
            Edit::Remove => 0,
        }
    }
}

/// What is said of the connection the head is written to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Persistence {
    /// Another message may follow.
    #[default]
    KeepAlive,
    /// This message is the last.
    Close,
    /// The connection becomes, or is asked to become, a WebSocket.
    WebSocket,
}

impl Persistence {
    /// Whether another message may follow.
    pub fn of(keeps: bool) -> Self {
        if keeps { Self::KeepAlive } else { Self::Close }
    }
}

/// How a request goes to a backend.
#[derive(Debug, Clone, Copy)]
pub struct RequestPlan<'a> {
    /// Whether GET is asked in place of the method received.
    pub is_get: bool,
    /// Another path with query than the one received.
    pub target: Option<Target<'a>>,
    /// Another Host than the one received. A request in HTTP/1.0 may have none; without this, Host is then empty, as
    /// RFC 9112 §3.2 has it.
    pub host: Option<FieldValue<'a>>,
    /// How the content will be sent. [`Framing::UntilClose`] is not for requests and counts as none.
    pub framing: Framing,
    /// Whether to ask the backend for `100 Continue`.
    pub expect_continue: bool,
    /// What to say of the connection. [`Persistence::WebSocket`] only if [`super::websocket::asks`].
    pub persistence: Persistence,
    /// Another element of Via (RFC 9110 §7.6.3).
    pub via: Option<FieldValue<'a>>,
    /// Changes to the fields, at most one for each name but for additions, and none that `lines` are about.
    pub changes: &'a [Change<'a>],
    /// Fields of our own.
    pub lines: Lines<'a>,
}

impl<'a> RequestPlan<'a> {
    /// To pass `head` on as it is, with `changes`.
    pub fn new(head: &RequestHead, changes: &'a [Change<'a>]) -> RequestPlan<'a> {
        RequestPlan {
            is_get: false,
            target: None,
            host: None,
            framing: head.framing(),
            expect_continue: false,
            persistence: Persistence::KeepAlive,
            via: None,
            changes,
            lines: Lines::default(),
        }
    }
}

/// How a response goes to a client.
#[derive(Debug, Clone, Copy)]
pub struct ResponsePlan<'a> {
    /// Another status than the one received.
    pub status: Option<u16>,
    /// The version the client speaks.
    pub client: Version,
    /// How the content will be sent.
    pub framing: Framing,
    /// What to say of the connection.
    pub persistence: Persistence,
    /// The present, for a response without Date (RFC 9110 §6.6.1).
    pub date: Option<FieldValue<'a>>,
    /// Changes to the fields, at most one for each name but for additions, and none that `lines` are about.
    pub changes: &'a [Change<'a>],
    /// Fields of our own.
    pub lines: Lines<'a>,
}

impl<'a> ResponsePlan<'a> {
    /// To pass `head` on to a client that speaks `client`, with `changes`. Content of unknown length goes in chunks, or
    /// to an HTTP/1.0 client up to the end of the connection, which is then closed whatever `persistence` says.
    pub fn new(
        head: &ResponseHead,
        client: Version,
        persistence: Persistence,
        changes: &'a [Change<'a>],
    ) -> ResponsePlan<'a> {
        let framing = match (head.framing(), client) {
            (Framing::Chunked | Framing::UntilClose, Version::Http11) => Framing::Chunked,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Framing::UntilClose,
            (framing, _) => framing,
        };
        let persistence = if framing == Framing::UntilClose { Persistence::Close } else { persistence };
        ResponsePlan { status: None, client, framing, persistence, date: None, changes, lines: Lines::default() }
    }
}

/// Appends the head of the request for the backend, HTTP/1.1 whatever the client speaks. `buf` is the buffer that
/// `head` was parsed from.
pub fn request(head: &RequestHead, buf: &[u8], plan: &RequestPlan<'_>, out: &mut Vec<u8>) {
    let host = plan.host.map_or(head.authority(buf).unwrap_or_default(), |host| host.0);
    let target_len = plan.target.map_or(0, |target| target.0.len());
    reserve(out, head.len() + host.len() + target_len + plan.lines.text.len(), plan.changes);
    out.extend_from_slice(if plan.is_get { b"GET" } else { head.method_token(buf) });
    out.push(b' ');
    write_target(head, buf, plan.target, out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    write_field(b"Host", host, out);
    let mut skip = OWN_IN_REQUESTS;
    if head.max_forwards().is_some() {
        skip = skip.with(Name::MaxForwards);
    }
    let skip = with_trailer(skip, plan.framing).union(plan.lines.replaced);
    write_fields(head.fields(), buf, skip, plan.changes, out);
    out.extend_from_slice(plan.lines.text);
    if let Some(via) = plan.via {
        write_field(b"Via", via.0, out);
    }
    if let Some(hops) = head.max_forwards() {
        write_number(b"Max-Forwards: ", hops.saturating_sub(1), out);
    }
    if plan.expect_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    write_framing(plan.framing, out);
    write_persistence(plan.persistence, Version::Http11, out);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of the response for the client, interim responses included. `buf` is the buffer that `head` was
/// parsed from.
pub fn response(head: &ResponseHead, buf: &[u8], plan: &ResponsePlan<'_>, out: &mut Vec<u8>) {
    reserve(out, head.len() + plan.lines.text.len(), plan.changes);
    match plan.status.filter(|status| *status != head.status()) {
        Some(status) => write_status_line(status, message::reason(status).as_bytes(), out),
        None => write_status_line(head.status(), head.reason(buf), out),
    }
    let skip = with_trailer(OWN, plan.framing).union(plan.lines.replaced);
    write_fields(head.fields(), buf, skip, plan.changes, out);
    out.extend_from_slice(plan.lines.text);
    if let Some(length) = head.content_length().filter(|_| plan.framing == Framing::None) {
        write_number(b"Content-Length: ", length, out);
    }
    write_framing(plan.framing, out);
    if !head.is_interim() {
        let is_told = |change: &Change<'_>| change.name.known == Name::Date && change.edit != Edit::Remove;
        if let Some(date) = plan.date.filter(|_| head.fields().value(buf, Name::Date).is_none())
            && !plan.changes.iter().any(is_told)
        {
            write_field(b"Date", date.0, out);
        }
        write_persistence(plan.persistence, plan.client, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Makes room for what is copied, what the changes write, and the rest.
fn reserve(out: &mut Vec<u8>, copied: usize, changes: &[Change<'_>]) {
    let changed: usize = changes.iter().map(|change| change.name.text.len() + change.value_len() + 4).sum();
    out.reserve(copied + changed + SPARE_BYTES);
}

fn write_status_line(status: u16, reason: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    let digit = |value: u16| b'0' + (value % 10) as u8;
    out.extend_from_slice(&[digit(status / 100), digit(status / 10), digit(status), b' ']);
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Writes the target in origin form, the only one that backends are asked in, but for `*` (RFC 9112 §3.2).
#[inline]
fn write_target(head: &RequestHead, buf: &[u8], target: Option<Target<'_>>, out: &mut Vec<u8>) {
    match target {
        Some(target) => out.extend_from_slice(target.0),
        None if head.form() == TargetForm::Origin => out.extend_from_slice(head.path_and_query(buf)),
        None => {
            out.extend_from_slice(head.path(buf));
            if let Some(query) = head.query(buf) {
                out.push(b'?');
                out.extend_from_slice(query);
            }
        }
    }
}

/// Trailer only announces something where trailers can follow: after chunks.
fn with_trailer(skip: NameSet, framing: Framing) -> NameSet {
    if framing == Framing::Chunked { skip.without(Name::Trailer) } else { skip }
}

/// Writes the fields received but for those in `skip`, those dropped and those changed, then what the changes add.
#[inline]
fn write_fields(fields: &Fields, buf: &[u8], skip: NameSet, changes: &[Change<'_>], out: &mut Vec<u8>) {
    let mut skip = skip;
    let mut changes_others = false;
    for change in changes.iter().filter(|change| change.edit.replaces()) {
        skip = skip.with(change.name.known);
        changes_others |= change.name.known == Name::Other;
    }
    let mut run = Span::default();
    for field in fields.all() {
        let known = field.known();
        if field.is_dropped() || skip.has(known) {
            continue;
        }
        if changes_others && known == Name::Other && is_changed(field.name(buf), changes) {
            continue;
        }
        match field.canonical_line() {
            Some(line) if line.start() == run.end() => run = run.through(line),
            Some(line) => {
                out.extend_from_slice(run.of(buf));
                run = line;
            }
            None => {
                out.extend_from_slice(run.of(buf));
                run = Span::default();
                write_field(field.name(buf), field.value(buf), out);
            }
        }
    }
    out.extend_from_slice(run.of(buf));
    for change in changes {
        write_change(fields, buf, change, out);
    }
}

fn is_changed(name: &[u8], changes: &[Change<'_>]) -> bool {
    let mut replacing = changes.iter().filter(|change| change.edit.replaces());
    replacing.any(|change| ascii::same_token(change.name.text, name))
}

fn write_change(fields: &Fields, buf: &[u8], change: &Change<'_>, out: &mut Vec<u8>) {
    match change.edit {
        Edit::Set(value) | Edit::Add(value) => write_field(change.name.text, value.0, out),
        Edit::SetIfMissing(value) => {
            if fields.named(buf, change.name.text).next().is_none() {
                write_field(change.name.text, value.0, out);
            }
        }
        Edit::Append(value) => {
            out.extend_from_slice(change.name.text);
            out.extend_from_slice(b": ");
            for received in fields.named(buf, change.name.text).filter(|received| !received.is_empty()) {
                out.extend_from_slice(received);
                out.extend_from_slice(b", ");
            }
            out.extend_from_slice(value.0);
            out.extend_from_slice(b"\r\n");
        }
        Edit::Remove => {}
    }
}

#[inline]
fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_number(name: &[u8], value: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(name);
    ascii::write_decimal(value, out);
    out.extend_from_slice(b"\r\n");
}

fn write_framing(framing: Framing, out: &mut Vec<u8>) {
    match framing {
        Framing::Length(length) => write_number(b"Content-Length: ", length, out),
        Framing::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Framing::None | Framing::UntilClose => {}
    }
}

fn write_persistence(persistence: Persistence, peer: Version, out: &mut Vec<u8>) {
    match persistence {
        Persistence::KeepAlive if peer == Version::Http11 => {}
        Persistence::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        Persistence::Close => out.extend_from_slice(b"Connection: close\r\n"),
        Persistence::WebSocket => out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    }
}

#[cfg(test)]
mod tests;
