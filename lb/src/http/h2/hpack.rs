//! HPACK (RFC 7541): decodes the fields of requests, encodes those of responses.
//!
//! A block is decoded to its end even if its request is refused, since each field may change the dynamic table that the
//! next blocks refer to. A few bytes of a block can stand for a field of [`TABLE_BYTES`]: so fields are passed on only
//! up to a limit, and a block with [`MAX_TIMES_TOO_LARGE`] times as much ends the connection. Whether a request may
//! have a field is not decided here.
//!
//! Responses use the static table only, and no Huffman code. So nothing is kept for a client, and responses of
//! different streams can be encoded in any order. nginx and HAProxy use no dynamic table for responses either.

use std::collections::VecDeque;

use super::{buffers, huffman};

/// Maximum size of the dynamic table: SETTINGS_HEADER_TABLE_SIZE, left at its initial value (RFC 9113 §6.5.2).
pub const TABLE_BYTES: usize = 4096;
/// What is added to the length of each field for its size (RFC 7541 §4.1).
pub const FIELD_OVERHEAD: usize = 32;
/// A block whose fields are so many times as large as is allowed is an attack.
const MAX_TIMES_TOO_LARGE: usize = 8;

/// The static table, from index 1 on (RFC 7541 appendix A).
static STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// A block that cannot be decoded. The connection has to end, because the dynamic table differs from the client's from
/// then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadBlock {
    /// It ends in the midst of a field.
    Truncated,
    /// An integer beyond all limits.
    Number,
    /// An index beyond the tables.
    Index,
    Huffman,
    /// A dynamic table size update beyond the maximum, or behind a field.
    TableSize,
    /// Its fields are far larger than what is allowed.
    TooLarge,
}

/// Decodes the blocks of one connection.
#[derive(Debug, Default)]
pub struct Decoder {
    table: Table,
}

/// The fields of a block, which are passed on up to a limit.
struct List<F> {
    /// The limit on their size, and their size so far. Once that is larger, no more are passed on.
    max_bytes: usize,
    size: usize,
    field: F,
}

/// The dynamic table, newest field first.
#[derive(Debug)]
struct Table {
    /// Of each field the lengths of name and value, and its offset in all the text that was ever added.
    fields: VecDeque<Kept>,
    /// Names and values, oldest first. Those before `start` have been evicted.
    text: Vec<u8>,
    start: usize,
    /// How many bytes were added before those in `text`, and have been freed.
    before: usize,
    size: usize,
    max_size: usize,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    at: usize,
    name: u16,
    value: u16,
}

impl<F: FnMut(&[u8], &[u8])> List<F> {
    fn take(&mut self, name: &[u8], value: &[u8]) -> Result<(), BadBlock> {
        self.size += name.len() + value.len() + FIELD_OVERHEAD;
        if self.size <= self.max_bytes {
            (self.field)(name, value);
        } else if self.size > self.max_bytes.saturating_mul(MAX_TIMES_TOO_LARGE) {
            return Err(BadBlock::TooLarge);
        }
        Ok(())
    }
}

impl Decoder {
    /// Decodes a block and passes each name and value to `field`, up to `max_bytes` as SETTINGS_MAX_HEADER_LIST_SIZE
    /// counts them. False: there are more. The field that exceeds the limit, and those behind it, are not passed on,
    /// and not decoded unless the dynamic table keeps them.
    pub fn read(&mut self, block: &[u8], max_bytes: usize, field: impl FnMut(&[u8], &[u8])) -> Result<bool, BadBlock> {
        let mut texts = buffers::take();
        let mut list = List { max_bytes, size: 0, field };
        let read = self.fields(block, &mut texts, &mut list);
        buffers::give_back(texts);
        read.map(|()| list.size <= max_bytes)
    }

    fn fields<F: FnMut(&[u8], &[u8])>(
        &mut self,
        mut rest: &[u8],
        texts: &mut Vec<u8>,
        list: &mut List<F>,
    ) -> Result<(), BadBlock> {
        let mut is_first = true;
        while let Some(&first) = rest.first() {
            match first {
                0x80.. => {
                    let index = number(&mut rest, 7)?;
                    match index.checked_sub(STATIC.len() + 1) {
                        None => {
                            let (name, value) = STATIC[index.checked_sub(1).ok_or(BadBlock::Index)?];
                            list.take(name.as_bytes(), value.as_bytes())?;
                        }
                        Some(kept) => {
                            let (name, value) = self.table.get(kept).ok_or(BadBlock::Index)?;
                            list.take(name, value)?;
                        }
                    }
                }
                0x20..0x40 => {
                    if !is_first {
                        return Err(BadBlock::TableSize);
                    }
                    let size = number(&mut rest, 5)?;
                    if size > TABLE_BYTES {
                        return Err(BadBlock::TableSize);
                    }
                    self.table.resize(size);
                    continue;
                }
                _ => self.literal(&mut rest, first & 0x40 != 0, texts, list)?,
            }
            is_first = false;
        }
        Ok(())
    }

    /// Decodes a literal field. `texts` is a buffer for a name or value that is not in the block as it is.
    fn literal<F: FnMut(&[u8], &[u8])>(
        &mut self,
        rest: &mut &[u8],
        is_kept: bool,
        texts: &mut Vec<u8>,
        list: &mut List<F>,
    ) -> Result<(), BadBlock> {
        let index = number(rest, if is_kept { 6 } else { 4 })?;
        // A longer text is neither passed on nor kept.
        let max_bytes = list.max_bytes.saturating_sub(list.size).max(if is_kept { self.table.max_size } else { 0 });
        texts.clear();
        let name = match index.checked_sub(1) {
            None => text(rest, max_bytes, texts)?,
            Some(at) => match STATIC.get(at) {
                Some((name, _)) => Some(name.as_bytes()),
                None => {
                    let (name, _) = self.table.get(at - STATIC.len()).ok_or(BadBlock::Index)?;
                    // Adding the field may evict the one that has the name.
                    texts.extend_from_slice(name);
                    None
                }
            },
        };
        let name_len = texts.len();
        let value = text(rest, max_bytes, texts)?;
        let (decoded_name, decoded_value) = texts.split_at(name_len);
        let (name, value) = (name.unwrap_or(decoded_name), value.unwrap_or(decoded_value));
        list.take(name, value)?;
        if is_kept {
            self.table.add(name, value);
        }
        Ok(())
    }
}

/// Takes an integer with a prefix of `bits` off the front (RFC 7541 §5.1).
fn number(rest: &mut &[u8], bits: u32) -> Result<usize, BadBlock> {
    let (&first, mut tail) = rest.split_first().ok_or(BadBlock::Truncated)?;
    let prefix_max = (1_usize << bits) - 1;
    let mut number = usize::from(first) & prefix_max;
    if number == prefix_max {
        let mut shift = 0;
        loop {
            let (&byte, more) = tail.split_first().ok_or(BadBlock::Truncated)?;
            tail = more;
            // Larger than any text or table.
            if shift > 21 {
                return Err(BadBlock::Number);
            }
            number += usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
    }
    *rest = tail;
    Ok(number)
}

/// Takes a string literal off the front (RFC 7541 §5.2). `None`: it had Huffman's code, and was appended to `decoded`,
/// until that had `max_bytes`.
fn text<'a>(rest: &mut &'a [u8], max_bytes: usize, decoded: &mut Vec<u8>) -> Result<Option<&'a [u8]>, BadBlock> {
    let is_coded = rest.first().is_some_and(|first| first & 0x80 != 0);
    let len = number(rest, 7)?;
    let (text, tail) = rest.split_at_checked(len).ok_or(BadBlock::Truncated)?;
    *rest = tail;
    if !is_coded {
        return Ok(Some(text));
    }
    huffman::decode(text, max_bytes, decoded).map_err(|_| BadBlock::Huffman)?;
    Ok(None)
}

impl Default for Table {
    fn default() -> Self {
        Self { fields: VecDeque::new(), text: Vec::new(), start: 0, before: 0, size: 0, max_size: TABLE_BYTES }
    }
}

impl Table {
    fn get(&self, at: usize) -> Option<(&[u8], &[u8])> {
        let kept = self.fields.get(at)?;
        let text = self.text.get(kept.at.wrapping_sub(self.before)..)?;
        let (name, rest) = text.split_at_checked(kept.name.into())?;
        Some((name, rest.get(..kept.value.into())?))
    }

    /// Adds a field. One that is larger than the table empties it (RFC 7541 §4.4).
    fn add(&mut self, name: &[u8], value: &[u8]) {
        let len = name.len() + value.len();
        let size = len + FIELD_OVERHEAD;
        self.shrink(self.max_size.saturating_sub(size));
        if size > self.max_size {
            return;
        }
        if self.text.len() + len > self.text.capacity() {
            self.text.drain(..self.start);
            self.before = self.before.wrapping_add(self.start);
            self.start = 0;
            // As much again would be more than all of the table.
            let free = self.max_size - self.text.len();
            self.text.reserve_exact(len.max(256).min(free.max(len)));
        }
        // Both are less than the table.
        let kept =
            Kept { at: self.before.wrapping_add(self.text.len()), name: name.len() as u16, value: value.len() as u16 };
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(value);
        self.fields.push_front(kept);
        self.size += size;
    }

    /// Evicts the oldest fields until the table has at most `size` bytes.
    fn shrink(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.fields.pop_back()
        {
            let len = usize::from(oldest.name) + usize::from(oldest.value);
            self.size -= len + FIELD_OVERHEAD;
            self.start += len;
        }
        if self.fields.is_empty() {
            self.text.clear();
            (self.start, self.before) = (0, 0);
        }
    }

    fn resize(&mut self, size: usize) {
        self.max_size = size;
        self.shrink(size);
        if self.fields.is_empty() {
            (self.text, self.fields) = (Vec::new(), VecDeque::new());
        }
    }
}

/// Appends a dynamic table size update to 0, for the first block after the client has set SETTINGS_HEADER_TABLE_SIZE
/// (RFC 7541 §4.2).
pub fn write_no_table(out: &mut Vec<u8>) {
    out.push(0x20);
}

/// Appends a response's status, from 100 to 999.
pub fn write_status(status: u16, out: &mut Vec<u8>) {
    let known = match status {
        200 => 8,
        204 => 9,
        206 => 10,
        304 => 11,
        400 => 12,
        404 => 13,
        500 => 14,
        _ => {
            let digit = |by: u16| b'0' + (status / by % 10) as u8;
            return out.extend_from_slice(&[8, 3, digit(100), digit(10), digit(1)]);
        }
    };
    out.push(0x80 | known);
}

/// Appends a field, whose name is written in small letters.
pub fn write_field(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let mut small = [0; LONGEST_STATIC];
    let known = small.get_mut(..name.len()).and_then(|small| {
        small.copy_from_slice(name);
        small.make_ascii_lowercase();
        static_name(small)
    });
    match known {
        // Never indexed, by proxies neither (RFC 7541 §7.1.3).
        Some(index @ SET_COOKIE) => write_number(0x10, 4, index, out),
        Some(index) => write_number(0, 4, index, out),
        None => {
            out.push(0);
            write_number(0, 7, name.len(), out);
            let start = out.len();
            out.extend_from_slice(name);
            out[start..].make_ascii_lowercase();
        }
    }
    write_number(0, 7, value.len(), out);
    out.extend_from_slice(value);
}

const SET_COOKIE: usize = 55;
const LONGEST_STATIC: usize = 27;

/// The static table's index of a name, for names that responses have.
fn static_name(name: &[u8]) -> Option<usize> {
    Some(match name {
        b"age" => 21,
        b"via" => 60,
        b"date" => 33,
        b"etag" => 34,
        b"link" => 45,
        b"vary" => 59,
        b"allow" => 22,
        b"server" => 54,
        b"expires" => 36,
        b"refresh" => 52,
        b"location" => 46,
        b"set-cookie" => SET_COOKIE,
        b"retry-after" => 53,
        b"content-type" => 31,
        b"accept-ranges" => 18,
        b"cache-control" => 24,
        b"content-range" => 30,
        b"last-modified" => 44,
        b"content-length" => 28,
        b"content-encoding" => 26,
        b"content-language" => 27,
        b"content-location" => 29,
        b"www-authenticate" => 61,
        b"content-disposition" => 25,
        b"strict-transport-security" => 56,
        b"access-control-allow-origin" => 20,
        _ => return None,
    })
}

/// Appends an integer with a prefix of `bits`, whose other bits are `others` (RFC 7541 §5.1).
fn write_number(others: u8, bits: u32, number: usize, out: &mut Vec<u8>) {
    let prefix_max = (1_usize << bits) - 1;
    if number < prefix_max {
        return out.push(others | number as u8);
    }
    out.push(others | prefix_max as u8);
    let mut rest = number - prefix_max;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(String, String)>;

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, BadBlock> {
        let mut fields = Fields::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("ASCII");
        decoder.read(block, usize::MAX, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|two| u8::from_str_radix(std::str::from_utf8(two).expect("ASCII"), 16).expect("hex"))
            .collect()
    }

    fn table(decoder: &Decoder) -> Vec<(&str, &str)> {
        let text = |bytes| std::str::from_utf8(bytes).expect("ASCII");
        (0..decoder.table.fields.len())
            .map(|at| decoder.table.get(at).expect("a field"))
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    fn same(fields: &Fields, expected: &[(&str, &str)]) {
        assert!(fields.iter().map(|(name, value)| (&**name, &**value)).eq(expected.iter().copied()), "{fields:?}");
    }

    #[test]
    fn single_fields_of_the_rfc_are_read() {
        for (block, field, kept, size) in [
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                ("custom-key", "custom-header"),
                1,
                55,
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", (":path", "/sample/path"), 0, 0),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", ("password", "secret"), 0, 0),
            ("82", (":method", "GET"), 0, 0),
        ] {
            let mut decoder = Decoder::default();
            same(&read(&mut decoder, &hex(block)).expect("a block"), &[field]);
            assert_eq!((table(&decoder).len(), decoder.table.size), (kept, size), "{block}");
        }
    }

    // RFC 7541 appendix C.3 and C.4.
    #[test]
    fn requests_of_the_rfc_are_read() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            let [first, second, third] = blocks.map(|block| read(&mut decoder, &hex(block)).expect("a block"));
            let authority = (":authority", "www.example.com");
            let head = [(":method", "GET"), (":scheme", "http"), (":path", "/"), authority];
            same(&first, &head);
            same(&second, &[&head[..], &[("cache-control", "no-cache")]].concat());
            let head = [(":method", "GET"), (":scheme", "https"), (":path", "/index.html"), authority];
            same(&third, &[&head[..], &[("custom-key", "custom-value")]].concat());
            let kept = [("custom-key", "custom-value"), ("cache-control", "no-cache"), authority];
            assert_eq!(table(&decoder), kept);
            assert_eq!(decoder.table.size, 164);
        }
    }

    // RFC 7541 appendix C.5 and C.6, whose table holds 256 bytes.
    #[test]
    fn responses_of_the_rfc_are_read() {
        let plain = [
            "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 \
             474d 546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "4803 3330 37c1 c0bf",
            "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 \
             666f 6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 \
             3630 303b 2076 6572 7369 6f6e 3d31",
        ];
        let coded = [
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 \
             63c7 8f0b 97c8 e9ae 82ae 43d3",
            "4883 640e ffc1 c0bf",
            "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 \
             b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            // A size of 31 + 225.
            read(&mut decoder, &[0x3f, 0xe1, 0x01]).expect("a size");
            let [first, second, third] = blocks.map(|block| read(&mut decoder, &hex(block)).expect("a block"));
            let (earlier, later) = ("Mon, 21 Oct 2013 20:13:21 GMT", "Mon, 21 Oct 2013 20:13:22 GMT");
            let (private, location) = (("cache-control", "private"), ("location", "https://www.example.com"));
            same(&first, &[(":status", "302"), private, ("date", earlier), location]);
            same(&second, &[(":status", "307"), private, ("date", earlier), location]);
            let cookie = ("set-cookie", "foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1");
            let encoding = ("content-encoding", "gzip");
            same(&third, &[(":status", "200"), private, ("date", later), location, encoding, cookie]);
            assert_eq!(table(&decoder), [cookie, encoding, ("date", later)]);
            assert_eq!(decoder.table.size, 215);
        }
    }

    #[test]
    fn encodings_that_no_encoder_produces_are_refused() {
        for (block, bad) in [
            (&b"\x80"[..], BadBlock::Index),
            (b"\xbe", BadBlock::Index),
            (b"\x7e\x01x", BadBlock::Index),
            (b"\x82\x20", BadBlock::TableSize),
            (b"\x3f\xe2\x1f", BadBlock::TableSize),
            (b"\xff", BadBlock::Truncated),
            (b"\xff\x80\x80\x80\x80\x01", BadBlock::Number),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", BadBlock::Number),
            (b"\x00\x7f\xff\xff\xff\xff\x7f", BadBlock::Number),
            (b"\x00", BadBlock::Truncated),
            (b"\x00\x02x", BadBlock::Truncated),
            (b"\x00\x01x", BadBlock::Truncated),
            (b"\x00\x81\xff\x00", BadBlock::Huffman),
        ] {
            assert_eq!(read(&mut Decoder::default(), block), Err(bad), "{block:x?}");
        }
        assert!(read(&mut Decoder::default(), b"\x3f\xe1\x1f\x20\x82").is_ok(), "4096, then 0");
    }

    // A name of the table whose field has to go to make room for the new one.
    #[test]
    fn a_name_outlives_the_field_it_was_taken_from() {
        let mut decoder = Decoder::default();
        let value = "v".repeat(4000);
        let long = |first: &[u8]| [first, b"\x7f\xa1\x1e", value.as_bytes()].concat();
        same(&read(&mut decoder, &long(b"\x40\x01n")).expect("a block"), &[("n", &value)]);
        same(&read(&mut decoder, &long(b"\x7e")).expect("a block"), &[("n", &value)]);
        assert_eq!(table(&decoder), [("n", &*value)]);
        assert!(decoder.table.text.capacity() <= TABLE_BYTES);
        // Larger than the table.
        let larger = [&b"\x40\x01n\x7f\x81\x20"[..], &[b'w'; 4224]].concat();
        assert!(read(&mut decoder, &larger).is_ok());
        assert_eq!(table(&decoder), []);
    }

    // HPACK bombs: a byte or two of the block stand for 4 KB each.
    #[test]
    fn a_field_block_is_not_decoded_beyond_the_limit() {
        const MOST: usize = 70_000;
        let long = |first: &[u8]| [first, b"\x7f\xa1\x1e", &[b'v'; 4000]].concat();
        let name = [&b"\x40\x7f\xa1\x1e"[..], &[b'n'; 4000], b"\x00"].concat();
        // The field, its name with an empty value, and the same to be kept again.
        for (beginning, piece) in [
            (long(b"\x40\x01n"), &b"\xbe"[..]),
            (name.clone(), b"\xbe"),
            (name.clone(), b"\x0f\x2f\x00"),
            (name.clone(), b"\x0f\x2f\x80"),
            (name, b"\x7e\x00"),
        ] {
            let field_size = 4000 + usize::from(beginning.len() == long(b"\x40\x01n").len()) + FIELD_OVERHEAD;
            // The end of the block is bad in another way: nobody may come there.
            for (count, end, expected) in
                [(15, &b""[..], Ok(true)), (100, b"", Ok(false)), (100_000, b"\x80", Err(BadBlock::TooLarge))]
            {
                let block = [&beginning[..], &piece.repeat(count), end].concat();
                let (mut decoder, mut size, mut fields) = (Decoder::default(), 0, 0);
                let read = decoder.read(&block, MOST, |name, value| {
                    size += name.len() + value.len() + FIELD_OVERHEAD;
                    fields += 1;
                });
                assert_eq!(read, expected, "{count} times {piece:x?}");
                assert_eq!(fields, (count + 1).min(MOST / field_size), "{count} times {piece:x?}");
                assert!(size <= MOST);
            }
        }
    }

    #[test]
    fn the_table_is_kept_up_to_date_beyond_the_limit() {
        let coded = huffman::tests::encode(b"www.example.com");
        let coded = [&[0x80 | coded.len() as u8][..], &coded].concat();
        let fields = [
            b"\x40\x01a\x01b".to_vec(),
            b"\x00\x01c\x01d".to_vec(),
            [b"\x41", &coded[..]].concat(),
            [b"\x01", &coded[..]].concat(),
            b"\xbf".to_vec(),
            b"\x82".to_vec(),
        ];
        for (max_bytes, given) in [(33, 0), (40, 1), (80, 2), (200, 4), (257, 5), (258, 6)] {
            let (mut decoder, mut count) = (Decoder::default(), 0);
            assert_eq!(decoder.read(&fields.concat(), max_bytes, |_, _| count += 1), Ok(given == 6), "{max_bytes}");
            assert_eq!(count, given, "{max_bytes}");
            assert_eq!(table(&decoder), [(":authority", "www.example.com"), ("a", "b")], "{max_bytes}");
        }
    }

    // Neither is kept nor given away: how much of them is decoded depends on the limit, not on the block.
    #[test]
    fn coded_texts_are_decoded_no_further_than_the_limit() {
        let coded = huffman::tests::encode(&[b'0'; 160_000]);
        let mut len = Vec::new();
        write_number(0x80, 7, coded.len(), &mut len);
        for (first, is_kept) in [(&b"\x00\x01x"[..], false), (b"\x40\x01x", true), (b"\x40", true), (b"\x00", false)] {
            let block = [first, &len, &coded, if first.len() == 1 { &b"\x00"[..] } else { b"" }].concat();
            let mut decoder = Decoder::default();
            let mut texts = Vec::new();
            let mut list = List { max_bytes: 1000, size: 0, field: |_: &[u8], _: &[u8]| panic!("it is too long") };
            // No more is counted than was decoded.
            assert_eq!(decoder.fields(&block, &mut texts, &mut list), Ok(()));
            assert!(texts.capacity() <= if is_kept { 2 * TABLE_BYTES } else { 2000 }, "{}", texts.capacity());
            assert_eq!(table(&decoder), []);
        }
    }

    #[test]
    fn the_table_is_as_a_list_would_be() {
        let mut decoder = Decoder::default();
        let mut list: Vec<(String, String)> = Vec::new();
        for n in 0..3_000_usize {
            let (name, value) = (format!("name-{}", n % 7), "x".repeat(n * 37 % 300));
            let block = [
                &[0x40, name.len() as u8][..],
                name.as_bytes(),
                &{
                    let mut len = Vec::new();
                    write_number(0, 7, value.len(), &mut len);
                    len
                },
                value.as_bytes(),
            ]
            .concat();
            read(&mut decoder, &block).expect("a block");
            list.insert(0, (name, value));
            let size = |list: &[(String, String)]| list.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
            while size(&list) > TABLE_BYTES {
                list.pop();
            }
            assert_eq!(decoder.table.size, size(&list));
            assert!(table(&decoder).iter().copied().eq(list.iter().map(|(n, v)| (&**n, &**v))), "{n}");
            assert!(decoder.table.text.capacity() <= TABLE_BYTES);
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        for (index, (name, value)) in STATIC.iter().enumerate() {
            if let Some(found) = static_name(name.as_bytes()) {
                assert_eq!((found, *value), (index + 1, ""));
                assert!(name.len() <= LONGEST_STATIC);
            }
        }
        for status in (100..600).chain([999]) {
            let mut block = Vec::new();
            write_status(status, &mut block);
            same(&read(&mut Decoder::default(), &block).expect("a block"), &[(":status", &status.to_string())]);
        }
        let long = "x".repeat(300);
        for name in ["Date", "X-Some", "SET-cookie", "X-Forwarded-For", &long, "Access-Control-Allow-Origin"] {
            for value in ["", "a", &"v".repeat(126), &"v".repeat(127), &"v".repeat(70_000)] {
                let mut block = Vec::new();
                write_no_table(&mut block);
                write_field(name.as_bytes(), value.as_bytes(), &mut block);
                let fields = read(&mut Decoder::default(), &block).expect("a block");
                same(&fields, &[(&*name.to_ascii_lowercase(), value)]);
            }
        }
    }
}
