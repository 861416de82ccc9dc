//! Texts with variables, expressions and tables: properties, and comparison with nginx.

mod nginx;
mod properties;

use proptest::prelude::*;

/// Pieces of values and expressions, so that many combinations of them are valid.
const PIECES: &[&str] = &[
    "/",
    "/a",
    "//",
    "\\",
    "https://",
    "$scheme://",
    "$host",
    "$http_host",
    "$uri",
    "$request_uri",
    "$args",
    "$is_args",
    "$arg_x",
    "$http_x",
    "$1",
    "${n}",
    "$$",
    "$",
    "?",
    "#",
    "&x=",
    "%",
    "%2e",
    "..",
    ".",
    "a.example",
    "@",
    ":",
    "\r\n",
    " ",
    "\"",
    "\u{e4}",
    "(",
    ")",
    "(?!",
    "(?=",
    "(?<n>",
    "(?:",
    "|",
    "*",
    "+",
    "?",
    "{2}",
    "[^/]",
    "[",
    "]",
    "^",
    "$",
    "\\d",
    "\\Q",
    "\\E",
    "a",
    "b",
];

fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![9 => prop::sample::select(PIECES).prop_map(str::to_owned), 1 => ".{0,3}"];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        prop::sample::select(PIECES).prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..3),
    ];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_sent_by_clients_cannot_leave_their_context(text in text(), data in data()) {
        properties::value_holds(&text, &data);
    }

    #[test]
    fn expressions_decide_deterministically(text in text(), data in data()) {
        properties::pattern_holds(&text, &data);
    }
}
