//! Character classes and scans over them.
//!
//! Every byte of a head is read once, by one of these scans. They are table look-ups and comparisons of sixteen bytes
//! at a time.

use wide::u8x16;

/// `tchar` of RFC 9110 §5.6.2: methods, field names, connection options.
pub(crate) const TOKEN: u8 = 1;
/// The `tchar` characters that no application treats as a hyphen: all but `_` and `.`.
pub(crate) const PLAIN: u8 = 1 << 1;
/// The bytes allowed in a field value or reason phrase: visible characters, space, tab, obs-text (RFC 9110 §5.5).
pub(crate) const TEXT: u8 = 1 << 2;
/// The bytes allowed in a request target: visible ASCII except `#`, because a fragment is never sent (RFC 9112 §3.2).
pub(crate) const TARGET: u8 = 1 << 3;
/// The bytes allowed in a registered name of an authority; see [`super::authority`].
pub(crate) const HOST: u8 = 1 << 4;
/// Hexadecimal digits.
pub(crate) const HEX: u8 = 1 << 5;
/// The question mark.
pub(crate) const QUESTION: u8 = 1 << 6;
/// The percent sign.
pub(crate) const PERCENT: u8 = 1 << 7;

static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = classes_of(at as u8);
        at += 1;
    }
    table
}

const fn classes_of(byte: u8) -> u8 {
    let mut class = 0;
    let plain = byte.is_ascii_alphanumeric() || byte == b'-';
    if plain {
        class |= PLAIN | TOKEN | HOST;
    }
    if matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~') {
        class |= TOKEN;
    }
    if matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'^' | b'`' | b'|' | b'~') {
        class |= PLAIN;
    }
    // unreserved and sub-delims of RFC 3986 §2, except the comma, which would join two hosts into one list.
    if matches!(byte, b'.' | b'_' | b'~' | b'!' | b'$' | b'&'..=b'+' | b';' | b'=') {
        class |= HOST;
    }
    if byte == b'\t' || (byte >= b' ' && byte != 0x7f) {
        class |= TEXT;
    }
    if byte.is_ascii_graphic() && byte != b'#' {
        class |= TARGET;
    }
    if byte.is_ascii_hexdigit() {
        class |= HEX;
    }
    match byte {
        b'?' => class | QUESTION,
        b'%' => class | PERCENT,
        _ => class,
    }
}

/// Whether `byte` is in any of the classes of `class`.
#[inline]
pub(crate) fn is(byte: u8, class: u8) -> bool {
    CLASS[usize::from(byte)] & class != 0
}

/// Whether `bytes` is a `token`: at least one `tchar` and nothing else.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| is(byte, TOKEN))
}

/// The length of the leading run of `class`, and the classes that every byte of the run has.
#[inline]
pub(crate) fn run_sharing(bytes: &[u8], class: u8) -> (usize, u8) {
    let mut shared = u8::MAX;
    for (at, &byte) in bytes.iter().enumerate() {
        let found = CLASS[usize::from(byte)];
        if found & class == 0 {
            return (at, shared);
        }
        shared &= found;
    }
    (bytes.len(), shared)
}

/// The length of the leading run of `class`, and the classes that at least one byte of the run has.
#[inline]
pub(crate) fn run_holding(bytes: &[u8], class: u8) -> (usize, u8) {
    let mut held = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let found = CLASS[usize::from(byte)];
        if found & class == 0 {
            return (at, held);
        }
        held |= found;
    }
    (bytes.len(), held)
}

/// Whether every byte is [`TEXT`].
#[inline]
pub(crate) fn is_text(bytes: &[u8]) -> bool {
    text_run(bytes) == bytes.len()
}

/// The length of the leading run of [`TEXT`].
#[inline]
pub(crate) fn text_run(bytes: &[u8]) -> usize {
    for (number, block) in bytes.as_chunks::<16>().0.iter().enumerate() {
        let stops = stops(block);
        if stops != 0 {
            return number * 16 + stops.trailing_zeros() as usize;
        }
    }
    match bytes.last_chunk() {
        // It overlaps the blocks before it, which are text.
        Some(last) => bytes.len().min(bytes.len() - 16 + stops(last).trailing_zeros() as usize),
        None => bytes.iter().position(|&byte| !is(byte, TEXT)).unwrap_or(bytes.len()),
    }
}

/// The offset of the first colon, if it is among the first 32 bytes, as many have arrived, and only [`TEXT`] precedes
/// it.
#[inline]
pub(crate) fn near_colon(bytes: &[u8]) -> Option<usize> {
    let blocks = bytes.first_chunk::<32>()?.as_chunks::<16>().0;
    for (number, block) in blocks.iter().enumerate() {
        let (colon, stop) = (colons(block).trailing_zeros(), stops(block).trailing_zeros());
        if colon < stop {
            return Some(number * 16 + colon as usize);
        }
        if stop < u32::BITS {
            return None;
        }
    }
    None
}

/// The bytes that are not [`TEXT`]: a bit for each, the lowest for the first.
#[inline(always)]
fn stops(block: &[u8; 16]) -> u32 {
    let bytes = u8x16::new(*block);
    let is_control = bytes.min(u8x16::splat(0x1f)).simd_eq(bytes);
    let is_tab = bytes.simd_eq(u8x16::splat(b'\t'));
    let is_delete = bytes.simd_eq(u8x16::splat(0x7f));
    ((is_control & !is_tab) | is_delete).to_bitmask()
}

/// The bytes that are colons: a bit for each, the lowest for the first.
#[inline(always)]
fn colons(block: &[u8; 16]) -> u32 {
    u8x16::new(*block).simd_eq(u8x16::splat(b':')).to_bitmask()
}

/// Whether two tokens are equal, ignoring case. Only for tokens: in other bytes, bit 5 does not only mean case.
#[inline]
pub(crate) fn same_token(one: &[u8], other: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    if one.len() != other.len() {
        return false;
    }
    let (one_words, one_tail) = one.as_chunks::<8>();
    let (other_words, other_tail) = other.as_chunks::<8>();
    let word = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes) | CASE;
    one_words.iter().zip(other_words).all(|(a, b)| word(a) == word(b))
        && one_tail.iter().zip(other_tail).all(|(a, b)| a | 0x20 == b | 0x20)
}

/// `bytes` without the spaces and tabs around it (OWS, RFC 9110 §5.6.3).
#[inline]
pub(crate) fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let Some(start) = bytes.iter().position(|byte| !blank(byte)) else {
        return &[];
    };
    let end = bytes.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    bytes.get(start..end).unwrap_or_default()
}

/// The elements of a comma-separated list, trimmed. Includes empty ones; whether they are allowed depends on the field.
pub(crate) fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(trim)
}

/// The value of `1*DIGIT`. `None` for anything else, and above `u64::MAX`.
#[inline]
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |value, byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The value of one hexadecimal digit.
#[inline]
pub(crate) fn hex_value(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// Appends `value` in decimal.
pub(crate) fn write_decimal(mut value: u64, out: &mut Vec<u8>) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (value % 10) as u8;
        start -= 1;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(start..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_runs_end_at_the_first_byte_outside_the_table() {
        for length in 0..40 {
            for stop in 0..length {
                for byte in 0..=255u8 {
                    let mut bytes = vec![b'a'; length];
                    bytes[stop] = byte;
                    let expected = if is(byte, TEXT) { length } else { stop };
                    assert_eq!(text_run(&bytes), expected, "{byte:#x} at {stop} of {length}");
                    assert_eq!(is_text(&bytes), expected == length, "{byte:#x} at {stop} of {length}");
                    bytes[stop / 2] = b'\t';
                    let expected = if stop == 0 { length } else { expected };
                    assert_eq!(text_run(&bytes), expected, "{byte:#x} at {stop} of {length} after a tab");
                    assert_eq!(is_text(&bytes), expected == length, "{byte:#x} at {stop} of {length} after a tab");
                }
            }
        }
    }

    #[test]
    fn a_near_colon_is_the_first_of_thirty_two_bytes_after_text() {
        for length in 0..40 {
            let mut bytes = vec![b';'; length];
            assert_eq!(near_colon(&bytes), None);
            for at in (0..length).rev() {
                bytes[at] = b':';
                let expected = (length >= 32 && at < 32).then_some(at);
                assert_eq!(near_colon(&bytes), expected, "{at} of {length}");
                for before in 0..at {
                    bytes[before] = b'\r';
                    assert_eq!(near_colon(&bytes), None, "{at} of {length} after a control byte at {before}");
                    bytes[before] = b';';
                }
            }
        }
    }

    #[test]
    fn tokens_are_the_fifteen_marks_letters_and_digits() {
        let marks = b"!#$%&'*+-.^_`|~";
        for byte in 0..=255u8 {
            let expected = byte.is_ascii_alphanumeric() || marks.contains(&byte);
            assert_eq!(is(byte, TOKEN), expected, "{byte:#x}");
        }
    }

    #[test]
    fn tokens_are_compared_ignoring_ascii_case_only() {
        assert!(same_token(b"Transfer-Encoding", b"tRANSFER-eNCODING"));
        assert!(!same_token(b"Transfer-Encoding", b"Transfer-Encodinh"));
        assert!(!same_token(b"host", b"hos"));
        assert!(same_token(b"", b""));
    }

    #[test]
    fn decimals_are_digits_that_fit() {
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(decimal(b"007"), Some(7));
        for bad in ["", "18446744073709551616", "+1", "-1", "1 ", "0x1", "1,1", "١"] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn decimals_format_and_parse_alike() {
        for value in [0, 7, 10, 99, 12_345, u64::MAX] {
            let mut out = Vec::new();
            write_decimal(value, &mut out);
            assert_eq!(out, value.to_string().into_bytes());
        }
    }

    #[test]
    fn trims_tabs_and_spaces_only() {
        assert_eq!(trim(b" \t a b\t"), b"a b");
        assert_eq!(trim(b" \t"), b"");
        assert_eq!(elements(b"a, b,,c ").collect::<Vec<_>>(), [&b"a"[..], b"b", b"", b"c"]);
    }
}
