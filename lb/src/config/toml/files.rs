//! Reads the files that a configuration names, to be sure that they are usable.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use toml::de::DeValue;

use super::values::{self, Read};
use crate::config::Secret;

/// Shorter secrets can be guessed.
const MIN_SECRET_BYTES: usize = 16;
const MAX_SECRET_BYTES: usize = 4096;
/// Pages are kept in memory.
const MAX_PAGE_BYTES: u64 = 1 << 20;
/// All CAs of a system take a quarter of this.
const MAX_PEM_BYTES: u64 = 1 << 20;

/// A bearer token, which must be valid in a header field; none when no file is named.
pub(super) fn token(base: &Path, value: &DeValue<'_>) -> Read<Option<Secret>> {
    let secret = secret(base, value)?;
    match &secret {
        Some(token) if !token.expose().iter().all(u8::is_ascii_graphic) => {
            Err("the path of a file with one line of letters, digits and punctuation, without spaces".to_owned())
        }
        _ => Ok(secret),
    }
}

/// The bytes of a file without a final line ending; none when no file is named.
pub(super) fn secret(base: &Path, value: &DeValue<'_>) -> Read<Option<Secret>> {
    let Some(path) = values::path(base, value)? else { return Ok(None) };
    let bytes = readable(&path)?;
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
    let shown = path.display();
    match bytes.len() {
        0..MIN_SECRET_BYTES => Err(format!(
            "the path of a file with at least {MIN_SECRET_BYTES} random characters, made for example with \"openssl rand -hex 32\"; {shown} has {}",
            bytes.len()
        )),
        MIN_SECRET_BYTES..=MAX_SECRET_BYTES => Ok(Secret::new(bytes)),
        _ => Err(format!("the path of a file of at most {MAX_SECRET_BYTES} bytes; {shown} has more")),
    }
}

/// The text of a file without its final line ending, and its path: the value of a field, which may be secret.
pub(super) fn text(base: &Path, value: &DeValue<'_>) -> Read<(PathBuf, String)> {
    let path = values::path(base, value)?.ok_or("the path of a file")?;
    let bytes = readable(&path)?;
    if bytes.len() > MAX_SECRET_BYTES {
        return Err(format!("the path of a file of at most {MAX_SECRET_BYTES} bytes; {} has more", path.display()));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| format!("the path of a UTF-8 text file; {} is not one", path.display()))?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text).to_owned();
    match text.is_empty() {
        true => Err(format!("the path of a file with a text; {} is empty", path.display())),
        false => Ok((path, text)),
    }
}

/// The content of an error page, and its path.
pub(super) fn page(base: &Path, value: &DeValue<'_>) -> Read<(PathBuf, Vec<u8>)> {
    let path = values::path(base, value)?.ok_or("the path of a file")?;
    let mut bytes = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(MAX_PAGE_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|e| unreadable(&path, &e))?;
    match bytes.len() as u64 > MAX_PAGE_BYTES {
        true => Err(format!("the path of a file of at most {MAX_PAGE_BYTES} bytes; {} has more", path.display())),
        false => Ok((path, bytes)),
    }
}

/// The media type of a page, by its file name extension.
pub(super) fn content_type(path: &Path) -> &'static str {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.to_ascii_lowercase().as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "txt" => "text/plain; charset=utf-8",
        "json" => "application/json",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        _ => "application/octet-stream",
    }
}

/// The certificates of a PEM file, with its path; none when empty.
pub(super) fn certificates(base: &Path, value: &DeValue<'_>) -> Read<Option<(PathBuf, Vec<CertificateDer<'static>>)>> {
    let Some(path) = values::path(base, value)? else { return Ok(None) };
    let bytes = pem_bytes(&path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(Some((path, certificates))),
        _ => Err(format!("the path of a PEM file with certificates; {} has none that can be read", path.display())),
    }
}

/// A private key in PEM, with the path of its file; none when empty.
pub(super) fn key(base: &Path, value: &DeValue<'_>) -> Read<Option<(PathBuf, Secret)>> {
    let Some(path) = values::path(base, value)? else { return Ok(None) };
    let bytes = pem_bytes(&path)?;
    match (PrivateKeyDer::from_pem_slice(&bytes), Secret::new(bytes)) {
        (Ok(_), Some(key)) => Ok(Some((path, key))),
        _ => Err(format!(
            "the path of a PEM file with an unencrypted private key; {} has none that can be read",
            path.display()
        )),
    }
}

fn pem_bytes(path: &Path) -> Read<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|e| unreadable(path, &e))?;
    match bytes.len() as u64 > MAX_PEM_BYTES {
        true => Err(format!("the path of a file of at most {MAX_PEM_BYTES} bytes; {} has more", path.display())),
        false => Ok(bytes),
    }
}

fn readable(path: &Path) -> Read<Vec<u8>> {
    let mut bytes = Vec::new();
    // A device file may be endless.
    let limit = MAX_SECRET_BYTES as u64 + 3;
    let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    read.map_err(|e| unreadable(path, &e))?;
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("the path of a file that can be read; {}: {error}", path.display())
}
