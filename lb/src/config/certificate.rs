//! What an operator wants to know about a certificate: its names, validity and issuer. Parsed from DER (X.690) along
//! the structure of RFC 5280 §4.1. TLS itself verifies certificates, not this module.

use std::net::IpAddr;
use std::path::Path;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The parts of a certificate that are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certificate {
    /// Distinguished names in DER.
    pub issuer: Vec<u8>,
    pub subject: Vec<u8>,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// DNS names, and IP addresses as text.
    pub names: Vec<String>,
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SET: u8 = 0x31;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
const BMP_STRING: u8 = 0x1e;
/// Tags: `[0]` of the version, `[3]` of the extensions, and the kinds of names.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
/// `id-ce-subjectAltName`, 2.5.29.17.
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// A distinguished name as text: RFC 2253, as in nginx's `$ssl_client_s_dn`. `name`: the content of its sequence in
/// DER.
pub(crate) fn distinguished_name(name: &[u8]) -> String {
    let mut parts = Vec::new();
    let mut sets = Der(name);
    while let Some(set) = sets.take(SET) {
        let mut pairs = Der(set);
        let mut part = Vec::new();
        while let Some(pair) = pairs.take(SEQUENCE) {
            let mut pair = Der(pair);
            let (Some(kind), Some((tag, value))) = (pair.take(OBJECT_IDENTIFIER), pair.next()) else { break };
            part.push(attribute(kind, tag, value));
        }
        parts.push(part.join("+"));
    }
    parts.reverse();
    parts.join(",")
}

/// Names of attributes (RFC 4519) by their object identifiers.
const ATTRIBUTES: &[(&[u8], &str)] = &[
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 4], "SN"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "street"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 12], "title"),
    (&[0x55, 4, 42], "GN"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
];

fn attribute(kind: &[u8], tag: u8, value: &[u8]) -> String {
    let text = match tag {
        UTF8_STRING | PRINTABLE_STRING | IA5_STRING => std::str::from_utf8(value).ok().map(str::to_owned),
        BMP_STRING => {
            let units: Vec<u16> = value.as_chunks().0.iter().map(|unit| u16::from_be_bytes(*unit)).collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    };
    let name = match ATTRIBUTES.iter().find(|(known, _)| *known == kind) {
        Some((_, name)) => (*name).to_owned(),
        None => dotted(kind),
    };
    match text {
        Some(text) => format!("{name}={}", escaped(&text)),
        None => {
            let hex: String = value.iter().map(|byte| format!("{byte:02X}")).collect();
            let length = match value.len() {
                short @ ..0x80 => format!("{short:02X}"),
                byte @ ..0x100 => format!("81{byte:02X}"),
                more => format!("82{more:04X}"),
            };
            format!("{name}=#{tag:02X}{length}{hex}")
        }
    }
}

/// Escapes as in RFC 2253 §2.4; control characters and non-ASCII characters become hex codes, so that no value can
/// break out of a line.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    let last = text.chars().count().saturating_sub(1);
    for (position, c) in text.chars().enumerate() {
        match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => out.extend(['\\', c]),
            '#' | ' ' if position == 0 => out.extend(['\\', c]),
            ' ' if position == last => out.extend(['\\', c]),
            c if c.is_control() || !c.is_ascii() => {
                let mut utf8 = [0; 4];
                c.encode_utf8(&mut utf8).bytes().for_each(|byte| out.push_str(&format!("\\{byte:02X}")));
            }
            c => out.push(c),
        }
    }
    out
}

/// An object identifier in dotted decimal notation (X.690 §8.19).
fn dotted(identifier: &[u8]) -> String {
    let mut numbers: Vec<u64> = Vec::new();
    let mut number = 0_u64;
    for byte in identifier {
        number = number.wrapping_shl(7) | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            match numbers.is_empty() {
                true => numbers.extend([(number / 40).min(2), number - 40 * (number / 40).min(2)]),
                false => numbers.push(number),
            }
            number = 0;
        }
    }
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

/// The certificates of a PEM file, in order.
pub(crate) fn load(path: &Path) -> Result<Vec<Certificate>, String> {
    let certificates = CertificateDer::pem_file_iter(path).map_err(|e| e.to_string())?;
    let read = |der: Result<CertificateDer<'_>, _>| {
        let der = der.map_err(|e: rustls::pki_types::pem::Error| e.to_string())?;
        parse(&der).ok_or_else(|| "one of them is not an X.509 certificate".to_owned())
    };
    certificates.map(read).collect()
}

const DAY_SECONDS: i64 = 24 * 60 * 60;

/// How urgently a certificate has to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Renewal {
    /// Less than 30 days are left, and less than a third of the lifetime: tools that renew certificates have done so by
    /// then.
    Due,
    /// Less than 7 days are left, and less than a tenth of the lifetime.
    Urgent,
    Expired,
}

/// The date of a time, in UTC.
pub(crate) fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or("an unknown day".to_owned(), |time| time.strftime("%Y-%m-%d").to_string())
}

impl Certificate {
    /// Whether it has to be renewed, with `now` in seconds since 1970.
    pub(crate) fn renewal(&self, now: i64) -> Option<Renewal> {
        let (left, lifetime) = (self.not_after.saturating_sub(now), self.not_after.saturating_sub(self.not_before));
        match left {
            ..0 => Some(Renewal::Expired),
            _ if left < (7 * DAY_SECONDS).min(lifetime / 10) => Some(Renewal::Urgent),
            _ if left < (30 * DAY_SECONDS).min(lifetime / 3) => Some(Renewal::Due),
            _ => None,
        }
    }

    /// Whole days until it expires; 0 once it has.
    pub(crate) fn days_left(&self, now: i64) -> i64 {
        self.not_after.saturating_sub(now).max(0) / DAY_SECONDS
    }

    /// Whether its names match `host` (RFC 6125 §6.4: a `*` stands for one label).
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
            None => host.eq_ignore_ascii_case(name),
        })
    }
}

pub(crate) fn parse(der: &[u8]) -> Option<Certificate> {
    let mut certificate = Der(Der(der).take(SEQUENCE)?);
    let mut fields = Der(certificate.take(SEQUENCE)?);
    fields.skip(VERSION);
    fields.take(INTEGER)?;
    fields.take(SEQUENCE)?;
    let issuer = fields.take(SEQUENCE)?.to_vec();
    let mut validity = Der(fields.take(SEQUENCE)?);
    let (not_before, not_after) = (validity.time()?, validity.time()?);
    let subject = fields.take(SEQUENCE)?.to_vec();
    // The public key.
    fields.take(SEQUENCE)?;
    let mut names = Vec::new();
    while let Some((tag, content)) = fields.next() {
        if tag == EXTENSIONS {
            names = alternative_names(Der(Der(content).take(SEQUENCE)?)).unwrap_or_default();
        }
    }
    Some(Certificate { issuer, subject, not_before, not_after, names })
}

fn alternative_names(mut extensions: Der<'_>) -> Option<Vec<String>> {
    while let Some(extension) = extensions.take(SEQUENCE) {
        let mut extension = Der(extension);
        let is_wanted = extension.take(OBJECT_IDENTIFIER)? == SUBJECT_ALT_NAME;
        extension.skip(BOOLEAN);
        let value = extension.take(OCTET_STRING)?;
        if is_wanted {
            let mut list = Der(Der(value).take(SEQUENCE)?);
            let mut names = Vec::new();
            while let Some((tag, content)) = list.next() {
                names.extend(alternative_name(tag, content));
            }
            return Some(names);
        }
    }
    None
}

fn alternative_name(tag: u8, content: &[u8]) -> Option<String> {
    match tag {
        DNS_NAME => Some(String::from_utf8_lossy(content).into_owned()),
        IP_ADDRESS => match content.len() {
            4 => <[u8; 4]>::try_from(content).ok().map(|ip| IpAddr::from(ip).to_string()),
            _ => <[u8; 16]>::try_from(content).ok().map(|ip| IpAddr::from(ip).to_string()),
        },
        _ => None,
    }
}

/// The rest of a sequence of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value's tag and content; `None` at the end, or if it is malformed.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        let (tag, content) = self.next()?;
        (tag == wanted).then_some(content)
    }

    /// Skips an optional value.
    fn skip(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }

    /// RFC 5280 §4.1.2.5: up to 2049 with a two-digit year, in UTC.
    fn time(&mut self) -> Option<i64> {
        let (tag, content) = self.next()?;
        let text = std::str::from_utf8(content).ok()?;
        let digits = match tag {
            UTC_TIME => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
            GENERALIZED_TIME => text.to_owned(),
            _ => return None,
        };
        let time = DateTime::strptime("%Y%m%d%H%M%SZ", digits).ok()?;
        time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp().as_second())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/toml/test-data");

    #[test]
    fn names_and_validity_of_a_certificate_are_read() {
        let chain = load(&Path::new(FOLDER).join("cert.pem")).expect("a certificate");
        let [certificate] = chain.as_slice() else { panic!("{chain:?}") };
        assert_eq!(certificate.names, ["localhost"]);
        assert_eq!(
            (date(certificate.not_before), date(certificate.not_after)),
            ("2026-11-21".into(), "2126-10-28".into())
        );
        assert_eq!(certificate.issuer, certificate.subject);
        assert!(certificate.is_for("LOCALHOST") && !certificate.is_for("example.com"));
    }

    #[test]
    fn a_wildcard_matches_one_label() {
        let names = vec!["*.example.com".to_owned(), "10.0.0.1".to_owned()];
        let certificate = Certificate { issuer: vec![], subject: vec![], not_before: 0, not_after: 0, names };
        assert!(certificate.is_for("www.example.com") && certificate.is_for("10.0.0.1"));
        for host in ["example.com", "a.b.example.com", "www.example.org"] {
            assert!(!certificate.is_for(host), "{host}");
        }
    }

    #[test]
    fn subjects_are_formatted_as_by_openssl() {
        let pair = |kind: &[u8], tag: u8, value: &[u8]| {
            let mut pair = [&[OBJECT_IDENTIFIER, kind.len() as u8], kind, &[tag, value.len() as u8], value].concat();
            pair.splice(0..0, [SEQUENCE, pair.len() as u8]);
            pair
        };
        let set = |pairs: &[Vec<u8>]| {
            let mut set = pairs.concat();
            set.splice(0..0, [SET, set.len() as u8]);
            set
        };
        let cn = |text: &str| set(&[pair(&[0x55, 4, 3], UTF8_STRING, text.as_bytes())]);
        assert_eq!(distinguished_name(&[]), "");
        let two = [set(&[pair(&[0x55, 4, 6], PRINTABLE_STRING, b"DE")]), cn("a")].concat();
        assert_eq!(distinguished_name(&two), "CN=a,C=DE");
        let several =
            set(&[pair(&[0x55, 4, 3], IA5_STRING, b"a"), pair(&[0x55, 4, 11], BMP_STRING, &[0, b'x', 0x20, 0xac])]);
        assert_eq!(distinguished_name(&several), "CN=a+OU=x\\E2\\82\\AC");
        for (text, expected) in [
            ("a,b+c\"d\\e<f>g;h=i", "CN=a\\,b\\+c\\\"d\\\\e\\<f\\>g\\;h=i"),
            ("#a", "CN=\\#a"),
            (" a ", "CN=\\ a\\ "),
            ("a\r\nX: y", "CN=a\\0D\\0AX: y"),
            ("Jos\u{e9}", "CN=Jos\\C3\\A9"),
        ] {
            assert_eq!(distinguished_name(&cn(text)), expected);
        }
        assert_eq!(distinguished_name(&set(&[pair(&[0x2a, 0x86, 0x48, 1], 0x04, b"\x01")])), "1.2.840.1=#040101");
        assert_eq!(distinguished_name(&[SET, 5, 1]), "", "what is broken has no more");
    }

    #[test]
    fn renewal_is_due_by_the_lifetime_of_the_certificate() {
        let with_days = |days: i64| Certificate {
            issuer: vec![],
            subject: vec![],
            not_before: 0,
            not_after: days * DAY_SECONDS,
            names: vec![],
        };
        for (lifetime, left, renewal) in [
            (90, 31, None),
            (90, 29, Some(Renewal::Due)),
            (90, 7, Some(Renewal::Due)),
            (90, 6, Some(Renewal::Urgent)),
            (90, 0, Some(Renewal::Urgent)),
            (90, -1, Some(Renewal::Expired)),
            (6, 3, None),
            (6, 1, Some(Renewal::Due)),
            (6, 0, Some(Renewal::Urgent)),
            (3650, 31, None),
            (3650, 29, Some(Renewal::Due)),
        ] {
            let certificate = with_days(lifetime);
            let now = (lifetime - left) * DAY_SECONDS;
            assert_eq!(certificate.renewal(now), renewal, "{left} of {lifetime} days are left");
            assert_eq!(certificate.days_left(now), left.max(0));
        }
    }

    #[test]
    fn malformed_certificates_are_refused_without_panic() {
        let whole = CertificateDer::from_pem_file(format!("{FOLDER}/cert.pem")).expect("a certificate").to_vec();
        assert!(parse(&whole).is_some());
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_none(), "{end}");
        }
        for (index, byte) in (0..whole.len()).flat_map(|index| [(index, 0xff), (index, 0x80), (index, 0)]) {
            let mut broken = whole.clone();
            broken[index] = byte;
            let _ = parse(&broken);
        }
    }
}
