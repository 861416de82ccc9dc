//! The header of the PROXY protocol, versions 1 and 2, which tells a backend about the client at the start of a
//! connection (`doc/proxy-protocol.txt` of HAProxy, §2.1 and §2.2).

use std::io::Write;
use std::net::{IpAddr, SocketAddr};

use crate::config::transport::ProxyProtocol;

pub(crate) const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the command: on behalf of nobody, or of a client.
pub(crate) const LOCAL: u8 = 0x20;
pub(crate) const PROXY: u8 = 0x21;
/// A stream over IPv4, and over IPv6.
pub(crate) const TCP4: u8 = 0x11;
pub(crate) const TCP6: u8 = 0x21;

/// The two addresses of a client's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// The header for a client. `client` is `None` for the balancer's own connections, such as those of probes. Empty if
/// the pool does not use the protocol.
pub(crate) fn header(version: ProxyProtocol, client: Option<Client>) -> Vec<u8> {
    let client = client.map(|Client { from, to }| of_one_family(from, to));
    match version {
        ProxyProtocol::Off => Vec::new(),
        ProxyProtocol::V1 => text(client),
        ProxyProtocol::V2 => binary(client),
    }
}

fn text(client: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((from, to)) = client else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
    format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
}

fn binary(client: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    let Some((from, to)) = client else {
        header.extend([LOCAL, 0, 0, 0]);
        return header;
    };
    header.push(PROXY);
    header.extend(if from.is_ipv4() { [TCP4, 0, 12] } else { [TCP6, 0, 36] });
    for address in [from, to] {
        // Writing to a vector does not fail.
        let _ = match address.ip() {
            IpAddr::V4(ip) => header.write_all(&ip.octets()),
            IpAddr::V6(ip) => header.write_all(&ip.octets()),
        };
    }
    header.extend(from.port().to_be_bytes());
    header.extend(to.port().to_be_bytes());
    header
}

/// If only one address is IPv6, writes the other as IPv6, too.
fn of_one_family(from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let mapped = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    };
    match (canonical(from), canonical(to)) {
        (from, to) if from.is_ipv4() == to.is_ipv4() => (from, to),
        (from, to) => (mapped(from), mapped(to)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(from: &str, to: &str) -> Option<Client> {
        let address = |text: &str| text.parse().expect("an address");
        Some(Client { from: address(from), to: address(to) })
    }

    #[test]
    fn proxy_headers_match_the_specification() {
        let four = client("192.0.2.7:56324", "10.0.0.1:443");
        let six = client("[2001:db8::7]:1", "[2001:db8::1]:65535");
        let mixed = client("192.0.2.7:1", "[2001:db8::1]:2");
        let mapped = client("[::ffff:192.0.2.7]:1", "[::ffff:10.0.0.1]:2");
        for (client, line) in [
            (four, "PROXY TCP4 192.0.2.7 10.0.0.1 56324 443\r\n"),
            (six, "PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n"),
            (mixed, "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n"),
            (mapped, "PROXY TCP4 192.0.2.7 10.0.0.1 1 2\r\n"),
            (None, "PROXY UNKNOWN\r\n"),
        ] {
            assert_eq!(String::from_utf8_lossy(&header(ProxyProtocol::V1, client)), line);
            assert_eq!(header(ProxyProtocol::Off, client), b"");
        }
        let longest = client(
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
            "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
        );
        assert!(header(ProxyProtocol::V1, longest).len() <= 107, "what every receiver takes");
        let four = header(ProxyProtocol::V2, four);
        assert_eq!(four, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\xdc\x04\x01\xbb");
        let six = header(ProxyProtocol::V2, six);
        assert_eq!((&six[12..16], six.len()), (&b"\x21\x21\0\x24"[..], 16 + 36));
        assert_eq!(header(ProxyProtocol::V2, None), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    }
}
