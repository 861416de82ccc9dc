//! The normalised path for routing: decoded, without `//`, `.` and `..`, as nginx matches its locations.
//!
//! The backend still gets the path as received. Routing by the normalised path prevents `/a/%2e%2e/admin` and `//admin`
//! from bypassing a route for `/admin`.

use super::ascii;

/// Why a path cannot be normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadPath {
    /// It does not begin with `/`.
    NotAbsolute,
    /// A `%` without two hexadecimal digits, or `%00`.
    Escape,
    /// `..` above the root.
    AboveRoot,
}

/// Normalises `path` (without its query): decodes escapes, `%2F` included, then removes empty and `.` segments and
/// resolves `..`. A path that ends in `/.` or `/..` ends in `/` afterwards.
///
/// Most paths are already normal and are returned unchanged; others are written to `scratch`, which is overwritten and
/// only grows.
#[inline]
pub fn normalise<'a>(path: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<&'a [u8], BadPath> {
    if path.first() != Some(&b'/') {
        return Err(BadPath::NotAbsolute);
    }
    if is_normal(path) {
        return Ok(path);
    }
    scratch.clear();
    decode(path, scratch)?;
    let len = resolve(scratch)?;
    scratch.truncate(len);
    Ok(scratch)
}

/// Whether every `%` begins a valid escape, and none means NUL.
pub(crate) fn escapes_are_sound(path: &[u8]) -> bool {
    let mut rest = path;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        if escaped(rest, at).is_none() {
            return false;
        }
        rest = rest.get(at + 3..).unwrap_or_default();
    }
    true
}

fn is_normal(path: &[u8]) -> bool {
    // Without branches: checking the rest of a path is cheaper than deciding at every byte whether to stop.
    path.first() != Some(&b'%')
        && path.array_windows().fold(true, |is_normal, &[before, byte]| {
            is_normal & (byte != b'%') & ((before != b'/') | ((byte != b'/') & (byte != b'.')))
        })
}

/// The byte of the escape at `at`; `None` if the escape is invalid or means NUL.
fn escaped(path: &[u8], at: usize) -> Option<u8> {
    let high = ascii::hex_value(*path.get(at + 1)?)?;
    let low = ascii::hex_value(*path.get(at + 2)?)?;
    Some(high << 4 | low).filter(|&byte| byte != 0)
}

fn decode(path: &[u8], out: &mut Vec<u8>) -> Result<(), BadPath> {
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        if byte == b'%' {
            out.push(escaped(path, at).ok_or(BadPath::Escape)?);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    Ok(())
}

/// Resolves the segments of `path` in place and returns the new length. The result is never longer than what has been
/// read, so it can overwrite it.
fn resolve(path: &mut [u8]) -> Result<usize, BadPath> {
    let (mut read, mut kept) = (1, 1);
    while read < path.len() {
        let rest = path.get(read..).unwrap_or_default();
        let len = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
        let with_slash = if len < rest.len() { len + 1 } else { len };
        match rest.get(..len).unwrap_or_default() {
            b"" | b"." => {}
            b".." => kept = parent(path, kept)?,
            _ => {
                path.copy_within(read..read + with_slash, kept);
                kept += with_slash;
            }
        }
        read += with_slash;
    }
    Ok(kept)
}

/// The length of `path[..kept]`, which ends in a slash, without its last segment.
fn parent(path: &[u8], kept: usize) -> Result<usize, BadPath> {
    let without_slash = path.get(..kept - 1).unwrap_or_default();
    without_slash.iter().rposition(|&byte| byte == b'/').map(|slash| slash + 1).ok_or(BadPath::AboveRoot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str) -> Result<String, BadPath> {
        let mut scratch = Vec::new();
        normalise(path.as_bytes(), &mut scratch).map(|path| String::from_utf8_lossy(path).into_owned())
    }

    #[test]
    fn resolves_as_nginx_does() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b.c/", "/a/b.c/"),
            ("//", "/"),
            ("///a//b", "/a/b"),
            ("/./a/./b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/a/b/../", "/a/"),
            ("/a/../b", "/b"),
            ("/a/..", "/"),
            ("/a//..", "/"),
            ("/a/b/../../c", "/c"),
            ("/...", "/..."),
            ("/.a/..b", "/.a/..b"),
            ("/a/%2e%2E/b", "/b"),
            ("/a%2fb%2F..%2fc", "/a/c"),
            ("/a%20b", "/a b"),
            ("/%25%32%66", "/%2f"),
            ("/a%3Fb%23c", "/a?b#c"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
        }
    }

    #[test]
    fn refuses_paths_above_the_root_and_malformed_escapes() {
        for path in ["/..", "/../a", "/a/../..", "/%2e%2e/a", "/./..", "//..", "/a/..%2f..", "/..%2f"] {
            assert_eq!(normal(path), Err(BadPath::AboveRoot), "{path}");
        }
        for path in ["/%", "/%0", "/%0g", "/a%00b", "/%zz"] {
            assert_eq!(normal(path), Err(BadPath::Escape), "{path}");
            assert!(!escapes_are_sound(path.as_bytes()), "{path}");
        }
        assert!(escapes_are_sound(b"/%41%ff/%25"));
        for path in ["", "a", "*", "%2f"] {
            assert_eq!(normal(path), Err(BadPath::NotAbsolute), "{path}");
        }
    }

    #[test]
    fn borrows_a_normalised_path() {
        let mut scratch = Vec::new();
        normalise(b"/static/app.9f3.js", &mut scratch).unwrap();
        assert_eq!(scratch.capacity(), 0);
    }
}
