//! Header and trailer fields: parses one line at a time into offsets of the buffer (RFC 9112 §5).
//!
//! Requests, responses and trailers share this scanner, so that all of them reject the same lines.

use std::fmt;

use super::ascii::{self, PLAIN, TOKEN};
use super::name::{Name, NameSet};

/// The number of fields that need no extra memory.
const INLINE_FIELDS: usize = 32;

/// A range of the buffer from which a head was parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The range from `start` up to `end`. Heads are limited to far less than 32-bit offsets can address.
    #[inline]
    pub(crate) fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && u32::try_from(end).is_ok());
        Span { start: start as u32, end: end as u32 }
    }

    /// The bytes of this range in `buf`. Empty if `buf` is not the buffer that was parsed.
    #[inline]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        buf.get(self.start()..self.end()).unwrap_or_default()
    }

    /// The range from this one's start to the end of `last`.
    #[inline]
    pub(crate) fn through(self, last: Span) -> Span {
        Span { end: last.end, ..self }
    }

    /// The offset of the first byte.
    #[inline]
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// The offset after the last byte.
    #[inline]
    pub fn end(self) -> usize {
        self.end as usize
    }

    /// Whether the range is empty.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// One field line, as offsets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Field {
    name: Span,
    value: Span,
    known: Name,
    flags: u8,
}

/// The line is `Name: value` with one space and nothing after the value, as the balancer itself writes lines.
const CANONICAL: u8 = 1;
/// The field is not forwarded: Connection names it, or its name is ambiguous.
const DROPPED: u8 = 1 << 1;
/// The name contains `_` or `.`, which applications may treat as a hyphen.
const AMBIGUOUS: u8 = 1 << 2;

impl Field {
    /// The name as received.
    #[inline]
    pub fn name<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.name.of(buf)
    }

    /// The value, trimmed.
    #[inline]
    pub fn value<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        self.value.of(buf)
    }

    /// The range of the value.
    #[inline]
    pub(crate) fn value_span(&self) -> Span {
        self.value
    }

    /// The known name, or [`Name::Other`].
    #[inline]
    pub fn known(&self) -> Name {
        self.known
    }

    /// Whether the field is neither forwarded nor used.
    #[inline]
    pub fn is_dropped(&self) -> bool {
        self.flags & DROPPED != 0
    }

    /// The received line with its line end, if the balancer would write exactly the same.
    #[inline]
    pub(crate) fn canonical_line(&self) -> Option<Span> {
        (self.flags & CANONICAL != 0).then_some(Span { start: self.name.start, end: self.value.end + 2 })
    }

    pub(crate) fn is_ambiguous(&self) -> bool {
        self.flags & AMBIGUOUS != 0
    }

    pub(crate) fn mark_dropped(&mut self) {
        self.flags |= DROPPED;
    }
}

/// The fields of one head, in the order received.
#[derive(Debug, Clone)]
pub struct Fields {
    /// All fields, while they fit.
    inline: [Field; INLINE_FIELDS],
    /// All fields, once they no longer fit.
    heap: Vec<Field>,
    len: usize,
    present: NameSet,
}

impl Default for Fields {
    fn default() -> Fields {
        Fields { inline: [Field::default(); INLINE_FIELDS], heap: Vec::new(), len: 0, present: NameSet::EMPTY }
    }
}

impl Fields {
    /// Every field, including those that are not forwarded.
    #[inline]
    pub fn all(&self) -> &[Field] {
        self.inline.get(..self.len).unwrap_or(&self.heap)
    }

    /// The names and values of fields that are not dropped, in the order received.
    pub fn iter<'b>(&'b self, buf: &'b [u8]) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        self.all().iter().filter(|field| !field.is_dropped()).map(|field| (field.name(buf), field.value(buf)))
    }

    /// The values of every field named `name`.
    #[inline]
    pub fn values<'b>(&'b self, buf: &'b [u8], name: Name) -> impl Iterator<Item = &'b [u8]> {
        let fields = if self.present.has(name) { self.all() } else { &[] };
        fields.iter().filter(move |field| field.known == name && !field.is_dropped()).map(|field| field.value(buf))
    }

    /// The value of the first field named `name`.
    #[inline]
    pub fn value<'b>(&'b self, buf: &'b [u8], name: Name) -> Option<&'b [u8]> {
        self.values(buf, name).next()
    }

    /// The values of every field called `name` in any case: for names from the configuration.
    pub fn named<'b>(&'b self, buf: &'b [u8], name: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let live = self.all().iter().filter(|field| !field.is_dropped());
        live.filter(move |field| ascii::same_token(field.name(buf), name)).map(|field| field.value(buf))
    }

    pub(crate) fn clear(&mut self) {
        if self.len > INLINE_FIELDS {
            self.heap = Vec::new();
        }
        self.len = 0;
        self.present = NameSet::EMPTY;
    }

    /// Adds `field` unless there are already `limit`.
    #[inline]
    pub(crate) fn push(&mut self, field: Field, limit: usize) -> bool {
        if self.len >= limit {
            return false;
        }
        match self.inline.get_mut(self.len) {
            Some(slot) => *slot = field,
            None => self.push_on_heap(field),
        }
        self.len += 1;
        self.present = self.present.with(field.known);
        true
    }

    #[cold]
    fn push_on_heap(&mut self, field: Field) {
        if self.heap.is_empty() {
            self.heap.extend_from_slice(&self.inline);
        }
        self.heap.push(field);
    }

    /// Drops the fields that Connection names (RFC 9110 §7.6.1). Quadratic, and bounded by
    /// [`super::connection::MAX_OPTIONS`].
    #[cold]
    pub(crate) fn drop_named_by_connection(&mut self, buf: &[u8]) {
        for at in 0..self.len {
            let field = self.all()[at];
            if field.known == Name::Connection {
                for option in ascii::elements(field.value(buf)) {
                    self.drop_named(buf, option);
                }
            }
        }
    }

    fn drop_named(&mut self, buf: &[u8], name: &[u8]) {
        for field in self.inline.get_mut(..self.len).unwrap_or(&mut self.heap) {
            if ascii::same_token(field.name(buf), name) {
                field.mark_dropped();
            }
        }
    }
}

/// The error of a field line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadField {
    /// A line without a name before its colon.
    EmptyName,
    /// A byte that is not allowed in names.
    NameByte,
    /// A line without a colon.
    NoColon,
    /// White space between name and colon (RFC 9112 §5.1).
    SpaceBeforeColon,
    /// A line that begins with white space (RFC 9112 §5.2).
    Folded,
    /// A NUL in a value (RFC 9110 §5.5).
    Nul,
    /// Another control byte in a value.
    Control,
    /// A CR without LF (RFC 9112 §2.2).
    BareCr,
    /// A LF without CR.
    BareLf,
}

impl fmt::Display for BadField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

impl BadField {
    /// A fixed sentence that contains nothing from the peer.
    pub const fn reason(self) -> &'static str {
        match self {
            BadField::EmptyName => "field without a name",
            BadField::NameByte => "byte not allowed in a field name",
            BadField::NoColon => "field line without a colon",
            BadField::SpaceBeforeColon => "white space before a colon",
            BadField::Folded => "folded field line",
            BadField::Nul => "NUL in a field value",
            BadField::Control => "control byte in a field value",
            BadField::BareCr => "CR without LF",
            BadField::BareLf => "LF without CR",
        }
    }
}

/// The result of parsing a line.
pub(crate) enum Line {
    /// The line is incomplete.
    Unfinished,
    /// The empty line after the last field; the content begins at this offset.
    Empty(usize),
    /// A field; the next line begins at this offset.
    Field(Field, usize),
}

/// Parses the line at `at`.
///
/// The result depends only on the first invalid byte, never on how much has arrived after it. With `FROM_SERVER`, white
/// space before the colon is removed instead of rejected: RFC 9112 §5.1 requires that of a proxy for responses and
/// forbids it for requests.
#[inline(always)]
pub(crate) fn line<const FROM_SERVER: bool>(buf: &[u8], at: usize) -> Result<Line, BadField> {
    let Some(rest) = buf.get(at..).filter(|rest| !rest.is_empty()) else {
        return Ok(Line::Unfinished);
    };
    // Most names are known, and those need no look at each byte.
    let (name_len, colon, known, is_ambiguous) = match known_name(rest) {
        Some((len, name)) => (len, len, name, false),
        None => {
            let (name_len, shared) = ascii::run_sharing(rest, TOKEN);
            let Some(&stop) = rest.get(name_len) else {
                return Ok(Line::Unfinished);
            };
            let mut colon = name_len;
            if stop != b':' {
                if name_len == 0 && stop == b'\r' {
                    return empty_line(rest, at);
                }
                match skip_blanks::<FROM_SERVER>(rest, name_len)? {
                    Some(found) => colon = found,
                    None => return Ok(Line::Unfinished),
                }
            } else if name_len == 0 {
                return Err(BadField::EmptyName);
            }
            (name_len, colon, Name::of(rest.get(..name_len).unwrap_or_default()), shared & PLAIN == 0)
        }
    };
    let mut value = colon + 1;
    while let Some(b' ' | b'\t') = rest.get(value) {
        value += 1;
    }
    let end = value + ascii::text_run(rest.get(value..).unwrap_or_default());
    match (rest.get(end), rest.get(end + 1)) {
        (Some(b'\r'), Some(b'\n')) => {}
        (None, _) | (Some(b'\r'), None) => return Ok(Line::Unfinished),
        (Some(b'\r'), Some(_)) => return Err(BadField::BareCr),
        (Some(b'\n'), _) => return Err(BadField::BareLf),
        (Some(0), _) => return Err(BadField::Nul),
        (Some(_), _) => return Err(BadField::Control),
    }
    let mut value_end = end;
    while value_end > value && matches!(rest.get(value_end - 1), Some(b' ' | b'\t')) {
        value_end -= 1;
    }
    let canonical = value == name_len + 2 && rest.get(name_len + 1) == Some(&b' ') && value_end == end;
    let field = Field {
        name: Span::new(at, at + name_len),
        value: Span::new(at + value, at + value_end),
        known,
        flags: if canonical { CANONICAL } else { 0 } | if is_ambiguous { AMBIGUOUS } else { 0 },
    };
    Ok(Line::Field(field, at + end + 2))
}

/// The known name at the start of `rest`, with its length, if a colon follows directly. None of them is ambiguous.
/// [`Name::of`] is for tokens: of all other bytes, only control bytes could be mistaken for those of a known name.
#[inline(always)]
fn known_name(rest: &[u8]) -> Option<(usize, Name)> {
    let colon = ascii::near_colon(rest)?;
    let name = Name::of(rest.get(..colon)?);
    (name != Name::Other).then_some((colon, name))
}

fn empty_line(rest: &[u8], at: usize) -> Result<Line, BadField> {
    match rest.get(1) {
        None => Ok(Line::Unfinished),
        Some(b'\n') => Ok(Line::Empty(at + 2)),
        Some(_) => Err(BadField::BareCr),
    }
}

/// The name ended at `at` with something other than a colon. Returns the offset of the colon if only white space
/// precedes it and that is allowed; `None` if more bytes are needed.
#[cold]
fn skip_blanks<const FROM_SERVER: bool>(rest: &[u8], at: usize) -> Result<Option<usize>, BadField> {
    match rest.get(at) {
        Some(b' ' | b'\t') if at == 0 => return Err(BadField::Folded),
        Some(b' ' | b'\t') if FROM_SERVER => {}
        Some(b' ' | b'\t') => return Err(BadField::SpaceBeforeColon),
        Some(b'\n') => return Err(BadField::BareLf),
        Some(b'\r') => return Err(BadField::NoColon),
        _ => return Err(BadField::NameByte),
    }
    let blanks = rest.iter().skip(at).take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    match rest.get(at + blanks) {
        None => Ok(None),
        Some(b':') => Ok(Some(at + blanks)),
        Some(b'\r' | b'\n') => Err(BadField::NoColon),
        Some(_) => Err(BadField::NameByte),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::name;

    /// The name and value of the single line in `bytes`.
    fn read(bytes: &[u8]) -> Result<(&[u8], &[u8]), BadField> {
        match line::<false>(bytes, 0)? {
            Line::Field(field, next) => {
                assert_eq!(next, bytes.len());
                Ok((field.name(bytes), field.value(bytes)))
            }
            Line::Unfinished | Line::Empty(_) => panic!("not a field"),
        }
    }

    #[test]
    fn trims_values_but_keeps_inner_space() {
        for (text, name, value) in [
            ("A: b\r\n", "A", "b"),
            ("A:b\r\n", "A", "b"),
            ("A:\r\n", "A", ""),
            ("A: \t \r\n", "A", ""),
            ("A: \tb\tc d \t\r\n", "A", "b\tc d"),
            ("A: caf\u{e9}\r\n", "A", "caf\u{e9}"),
            ("!#$%&'*+-.^_`|~9: x:y\r\n", "!#$%&'*+-.^_`|~9", "x:y"),
        ] {
            assert_eq!(read(text.as_bytes()), Ok((name.as_bytes(), value.as_bytes())), "{text:?}");
        }
    }

    #[test]
    fn refusals_name_the_right_cause() {
        for (text, cause) in [
            (": b\r\n", BadField::EmptyName),
            ("A : b\r\n", BadField::SpaceBeforeColon),
            ("A\t: b\r\n", BadField::SpaceBeforeColon),
            (" A: b\r\n", BadField::Folded),
            ("\tb\r\n", BadField::Folded),
            ("A\r\n", BadField::NoColon),
            ("A\n", BadField::BareLf),
            ("A(: b\r\n", BadField::NameByte),
            ("\u{e9}: b\r\n", BadField::NameByte),
            ("A\0: b\r\n", BadField::NameByte),
            ("A: b\0\r\n", BadField::Nul),
            ("A: b\x01\r\n", BadField::Control),
            ("A: b\x7f\r\n", BadField::Control),
            ("A: b\rc\r\n", BadField::BareCr),
            ("A: b\r\r\n", BadField::BareCr),
            ("A: b\n", BadField::BareLf),
            ("\n", BadField::BareLf),
            ("\rA", BadField::BareCr),
        ] {
            assert_eq!(read(text.as_bytes()), Err(cause), "{text:?}");
        }
    }

    #[test]
    fn fields_beyond_the_inline_index_are_kept_in_order() {
        let mut fields = Fields::default();
        let text: String = (0..100).map(|number| format!("Field-{number}: {number}\r\n")).collect();
        let text = format!("Connection: field-3, field-90\r\n{text}");
        for count in [3, INLINE_FIELDS, INLINE_FIELDS + 1, 101] {
            fields.clear();
            let mut at = 0;
            for _ in 0..count {
                let Ok(Line::Field(field, next)) = line::<false>(text.as_bytes(), at) else { panic!("not a field") };
                assert!(fields.push(field, count));
                at = next;
            }
            assert!(!fields.push(Field::default(), count), "the limit holds");
            assert_eq!(fields.all().len(), count);
            fields.drop_named_by_connection(text.as_bytes());
            let values = fields.iter(text.as_bytes()).skip(1).map(|(_, value)| value.to_vec());
            let expected =
                (0..count - 1).filter(|number| ![3, 90].contains(number)).map(|n| n.to_string().into_bytes());
            assert!(values.eq(expected), "{count}");
        }
    }

    // A known name is read by its colon, any other byte by byte.
    #[test]
    fn a_name_is_read_alike_however_it_is_found() {
        let padding = "X".repeat(40);
        for &name in name::ALL {
            let line_of = |name: &str| format!("{name}: value\r\n");
            let texts = [name.text().to_owned(), name.text().to_uppercase(), format!("X{}", name.text())];
            for text in texts.map(|text| line_of(&text)) {
                let with_more = format!("{text}{padding}");
                let (Ok(Line::Field(short, end)), Ok(Line::Field(long, same_end))) =
                    (line::<false>(text.as_bytes(), 0), line::<false>(with_more.as_bytes(), 0))
                else {
                    panic!("not a field: {text}")
                };
                assert_eq!((short, end), (long, same_end), "{text}");
            }
            // In a name that is compared ignoring case, a CR would do for a hyphen.
            for at in 0..name.text().len() {
                for byte in 0..=255 {
                    let mut text = format!("{}: value\r\n{padding}", name.text()).into_bytes();
                    text[at] = byte;
                    let read = |text| {
                        line::<false>(text, 0).map(|line| match line {
                            Line::Field(field, end) => Some((field, end)),
                            Line::Unfinished | Line::Empty(_) => None,
                        })
                    };
                    let short = text.len() - padding.len();
                    assert_eq!(read(&text), read(&text[..short]), "{byte:#x} at {at} of {name:?}");
                }
            }
        }
    }

    #[test]
    fn servers_may_put_space_before_the_colon() {
        let text = b"Content-Length \t: 5\r\n";
        let Ok(Line::Field(field, _)) = line::<true>(text, 0) else { panic!("not a field") };
        assert_eq!((field.known(), field.value(text)), (Name::ContentLength, &b"5"[..]));
        assert_eq!(field.canonical_line(), None);
        assert!(matches!(line::<true>(b"A \r\n", 0), Err(BadField::NoColon)));
        assert!(matches!(line::<true>(b"X A: b\r\n", 0), Err(BadField::NameByte)));
        assert!(matches!(line::<true>(b" A: b\r\n", 0), Err(BadField::Folded)));
    }

    #[test]
    fn only_lines_in_our_own_format_are_canonical() {
        for (text, canonical) in
            [("A: b\r\n", true), ("A:b\r\n", false), ("A:\tb\r\n", false), ("A: b \r\n", false), ("A:  b\r\n", false)]
        {
            let Ok(Line::Field(field, _)) = line::<false>(text.as_bytes(), 0) else { panic!("not a field") };
            assert_eq!(field.canonical_line().is_some(), canonical, "{text:?}");
        }
    }
}
