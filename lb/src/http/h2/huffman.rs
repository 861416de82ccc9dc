//! Decodes the Huffman code of HPACK (RFC 7541 §5.2 and appendix B). It is canonical: the codes of one length follow
//! each other in the order of their symbols, so the tables are computed from the lengths. Responses do not use it, see
//! [`super::hpack`].

/// The length of each symbol's code in bits. The last symbol is EOS, which no text contains.
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, //
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, //
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, //
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, //
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const SYMBOLS: usize = 257;
const END: u16 = 256;
const MAX_BITS: usize = 30;
/// Codes of at most this length are found by one lookup.
const SHORT_BITS: usize = 8;

static CODE: Code = Code::new();

/// The padding is too long or not made of ones, or the text contains EOS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadCode;

struct Code {
    /// By the next eight bits: the symbol and the length of its code. Length 0: the code is longer than eight bits.
    short: [(u8, u8); 1 << SHORT_BITS],
    /// By length: the first 32-bit word that begins with a longer code.
    limit: [u64; MAX_BITS + 1],
    /// By length: what is added to a code to get the index of its symbol in `symbols`.
    place: [i64; MAX_BITS + 1],
    /// In the order of their codes.
    symbols: [u16; SYMBOLS],
}

impl Code {
    const fn new() -> Self {
        let mut new =
            Self { short: [(0, 0); 256], limit: [0; MAX_BITS + 1], place: [0; MAX_BITS + 1], symbols: [0; SYMBOLS] };
        let (mut code, mut count, mut bits) = (0_u64, 0, 1);
        while bits <= MAX_BITS {
            code <<= 1;
            new.place[bits] = count as i64 - code as i64;
            let mut symbol = 0;
            while symbol < SYMBOLS {
                if LENGTHS[symbol] as usize == bits {
                    new.symbols[count] = symbol as u16;
                    if bits <= SHORT_BITS {
                        let mut at = (code as usize) << (SHORT_BITS - bits);
                        let end = (code as usize + 1) << (SHORT_BITS - bits);
                        while at < end {
                            new.short[at] = (symbol as u8, bits as u8);
                            at += 1;
                        }
                    }
                    code += 1;
                    count += 1;
                }
                symbol += 1;
            }
            new.limit[bits] = code << (32 - bits);
            bits += 1;
        }
        new
    }

    /// The symbol whose code the word begins with, and the length of that code.
    fn long(&self, word: u32) -> (u16, u32) {
        let mut bits = SHORT_BITS + 1;
        while bits < MAX_BITS && u64::from(word) >= self.limit[bits] {
            bits += 1;
        }
        let place = i64::from(word >> (32 - bits)) + self.place[bits];
        // Every word begins with some code, since the code is complete.
        let symbol = usize::try_from(place).ok().and_then(|place| self.symbols.get(place)).copied();
        (symbol.unwrap_or(END), bits as u32)
    }
}

/// Appends the decoded text, until `out` has `max_bytes`: what follows is not checked.
pub(super) fn decode(coded: &[u8], max_bytes: usize, out: &mut Vec<u8>) -> Result<(), BadCode> {
    // The shortest codes have five bits.
    out.reserve((coded.len() * 8 / 5).min(max_bytes.saturating_sub(out.len())));
    // The next bits, from the highest on; `count` of them have been read.
    let (mut bits, mut count, mut rest) = (0_u64, 0_u32, coded);
    while out.len() < max_bytes {
        if count < 32 {
            if let Some((word, tail)) = rest.split_first_chunk::<4>() {
                bits |= u64::from(u32::from_be_bytes(*word)) << (32 - count);
                (count, rest) = (count + 32, tail);
            } else {
                for &byte in rest {
                    bits |= u64::from(byte) << (56 - count);
                    count += 8;
                }
                rest = &[];
            }
        }
        let (symbol, len) = match CODE.short[(bits >> 56) as usize] {
            (_, 0) => CODE.long((bits >> 32) as u32),
            (symbol, len) => (u16::from(symbol), u32::from(len)),
        };
        if len > count {
            // The rest is padding: less than a byte, of the first bits of EOS (RFC 7541 §5.2).
            let is_padding = count < 8 && (bits >> 56) as u8 == !(0xff_u16 >> count) as u8;
            return if is_padding { Ok(()) } else { Err(BadCode) };
        }
        if symbol == END {
            return Err(BadCode);
        }
        out.push(symbol as u8);
        bits <<= len;
        count -= len;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A text by the code, to be decoded again.
    pub(crate) fn encode(text: &[u8]) -> Vec<u8> {
        let (mut out, mut bits, mut count) = (Vec::new(), 0_u64, 0);
        for &byte in text {
            let len = u32::from(LENGTHS[usize::from(byte)]);
            let place = CODE.symbols.iter().position(|&symbol| symbol == u16::from(byte)).expect("a symbol");
            bits = bits << len | (place as i64 - CODE.place[len as usize]) as u64;
            count += len;
            while count >= 8 {
                count -= 8;
                out.push((bits >> count) as u8);
            }
        }
        if count > 0 {
            out.push((bits << (8 - count)) as u8 | 0xff >> count);
        }
        out
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, BadCode> {
        let mut out = Vec::new();
        decode(coded, usize::MAX, &mut out).map(|()| out)
    }

    #[test]
    fn texts_of_the_rfc_are_read() {
        for (coded, text) in [
            (&b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..], "www.example.com"),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x64\x02", "302"),
            (
                b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (b"", ""),
        ] {
            assert_eq!(decoded(coded), Ok(text.as_bytes().to_vec()), "{text}");
            assert_eq!(encode(text.as_bytes()), coded, "{text}");
        }
    }

    #[test]
    fn every_byte_is_read_beside_every_other() {
        for first in 0..=255 {
            for second in 0..=255 {
                let text = [first, second, b'a', second];
                assert_eq!(decoded(&encode(&text)), Ok(text.to_vec()));
            }
        }
    }

    #[test]
    fn no_more_is_decoded_than_is_wanted() {
        let text = b"www.example.com";
        let coded = [&encode(text)[..], &[0xff; 8]].concat();
        for max_bytes in 0..=text.len() {
            let mut out = Vec::new();
            assert_eq!(decode(&coded, max_bytes, &mut out), Ok(()), "the rest is bad");
            assert_eq!(out, text[..max_bytes]);
        }
        let mut out = b"abc".to_vec();
        assert_eq!(decode(&coded, 2, &mut out), Ok(()));
        assert_eq!(decode(&coded, 5, &mut out), Ok(()));
        assert_eq!(out, b"abcww");
        assert_eq!(decode(&coded, usize::MAX, &mut out), Err(BadCode));
    }

    #[test]
    fn padding_is_short_and_made_of_ones() {
        // `0` has five bits of zeroes.
        assert_eq!(decoded(&[0b0000_0111]), Ok(b"0".to_vec()));
        assert_eq!(decoded(&[0b0000_0110]), Err(BadCode));
        assert_eq!(decoded(&[0b0000_0011]), Err(BadCode));
        assert_eq!(decoded(&[0b0000_0111, 0xff]), Err(BadCode));
        assert_eq!(decoded(&[0xff]), Err(BadCode));
        assert_eq!(decoded(&[0xff; 4]), Err(BadCode), "the end");
        assert_eq!(decoded(&[0xff; 8]), Err(BadCode));
    }
}
