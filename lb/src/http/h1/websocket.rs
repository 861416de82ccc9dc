//! The one upgrade that is forwarded: HTTP/1.1 to WebSocket (RFC 9110 §7.8, RFC 6455 §4).
//!
//! A tunnel opens only when a sound request was answered by a sound 101. In every other case Upgrade goes no further
//! and both sides stay with HTTP/1.1.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use super::head::RequestHead;
use super::response::{BadResponse, ResponseHead};
use crate::message::framing::Framing;
use crate::message::{Method, Version};

/// Whether the request asks for WebSocket: GET in HTTP/1.1 without content, Connection with `upgrade` and Upgrade with
/// `websocket`. If not, Upgrade is ignored and stripped.
///
/// Content would have to be sent before the tunnel opens, and no browser sends any; such a request is served as HTTP.
pub fn asks(request: &RequestHead) -> bool {
    request.method() == Method::Get
        && request.version() == Version::Http11
        && matches!(request.framing(), Framing::None | Framing::Length(0))
        && request.connection().upgrade
        && request.offers_websocket()
}

/// What belongs to every key (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The Sec-WebSocket-Accept that proves to who has sent this Sec-WebSocket-Key that a WebSocket is open (RFC 6455
/// §4.2.2).
pub fn accept_of(key: &[u8]) -> String {
    let mut sha1 = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key);
    sha1.update(GUID);
    STANDARD.encode(sha1.finish())
}

/// Whether the response opens the tunnel, given whether the request [asked](asks) for one and that was passed on. A 101
/// that nobody asked for, or to something else, is no response at all.
pub fn answers(response: &ResponseHead, asked: bool) -> Result<bool, BadResponse> {
    if response.status() != 101 {
        return Ok(false);
    }
    if !asked {
        return Err(BadResponse::UnaskedUpgrade);
    }
    let sound = response.version() == Version::Http11 && response.connection().upgrade && response.takes_websocket();
    if sound { Ok(true) } else { Err(BadResponse::Upgrade) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_matches_the_example_of_the_rfc() {
        assert_eq!(accept_of(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
