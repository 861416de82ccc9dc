//! Reads PEM files (RFC 7468).

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pkcs8::EncryptedPrivateKeyInfoRef;
use rustls::pki_types::pem::{self, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A device file may be endless.
const MAX_FILE_BYTES: u64 = 4 << 20;
const ENCRYPTED_KEY: [&str; 2] = ["-----BEGIN ENCRYPTED PRIVATE KEY-----", "-----END ENCRYPTED PRIVATE KEY-----"];
/// The header of keys that are encrypted in OpenSSL's format from before PKCS #8 (RFC 1421 §4.6.1.1).
const TRADITIONAL: &str = "Proc-Type: 4,ENCRYPTED";

/// The parts of a PEM file that TLS needs.
#[derive(Debug, Default)]
pub(crate) struct Pem {
    pub certificates: Vec<CertificateDer<'static>>,
    pub key: Option<Key>,
}

/// A private key, as it is stored.
#[derive(Debug)]
pub(crate) enum Key {
    Plain(PrivateKeyDer<'static>),
    /// PKCS #8 (RFC 5958 §3), in DER.
    Encrypted(Vec<u8>),
    /// Encrypted in an unsupported format.
    Traditional,
}

/// The content of a file.
pub(crate) fn content(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|e| format!("{} cannot be read: {e}", path.display()))?;
    match bytes.len() as u64 > MAX_FILE_BYTES {
        true => Err(format!("{} is larger than {MAX_FILE_BYTES} bytes", path.display())),
        false => Ok(bytes),
    }
}

/// Parses a PEM file. Only the first key is used.
pub(crate) fn read(content: &[u8], path: &Path) -> Result<Pem, String> {
    let text = String::from_utf8_lossy(content);
    let mut found = Pem::default();
    let mut rest: &[u8] = content;
    if text.contains(TRADITIONAL) {
        found.key = Some(Key::Traditional);
        // The parser would not understand this section.
        rest = &[];
    } else if let Some(der) = encrypted(&text) {
        found.key = Some(Key::Encrypted(der));
    }
    while let Some((kind, der)) =
        pem::from_buf(&mut rest).map_err(|e| format!("{} is not a valid PEM file: {}", path.display(), describe(&e)))?
    {
        match kind {
            SectionKind::Certificate => found.certificates.push(der.into()),
            SectionKind::PrivateKey => found.key = found.key.or(Some(Key::Plain(PrivateKeyDer::Pkcs8(der.into())))),
            SectionKind::RsaPrivateKey => found.key = found.key.or(Some(Key::Plain(PrivateKeyDer::Pkcs1(der.into())))),
            SectionKind::EcPrivateKey => found.key = found.key.or(Some(Key::Plain(PrivateKeyDer::Sec1(der.into())))),
            _ => {}
        }
    }
    Ok(found)
}

/// Decrypts the private key of a PKCS #8 structure.
pub(crate) fn decrypt(der: &[u8], password: &[u8]) -> Option<PrivateKeyDer<'static>> {
    let key = EncryptedPrivateKeyInfoRef::try_from(der).ok()?.decrypt(password).ok()?;
    Some(PrivateKeyDer::Pkcs8(key.as_bytes().to_vec().into()))
}

fn encrypted(text: &str) -> Option<Vec<u8>> {
    let [begin, end] = ENCRYPTED_KEY;
    let (base64, _) = text.split_once(begin)?.1.split_once(end)?;
    let base64: String = base64.split_ascii_whitespace().collect();
    STANDARD.decode(base64).ok()
}

fn describe(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section has no end; is it written whole?".to_owned(),
        pem::Error::Base64Decode(_) => "a section is not valid base64".to_owned(),
        other => other.to_string(),
    }
}
