//! Serves pictures. The content of a name never changes, so pictures are cached forever.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use crate::App;
use crate::error::Error;
use crate::media::MediaName;

pub async fn show(State(app): State<Arc<App>>, Path(name): Path<String>, sent: HeaderMap) -> Result<Response, Error> {
    let name: MediaName = name.parse().map_err(|_| Error::NotFound)?;
    let tag = format!("\"{}\"", &name.to_string()[..64]);
    if let Some(tags) = sent.get(header::IF_NONE_MATCH) {
        // If the tag is listed, the client has the content, and the store need not be asked.
        if lists(tags, &tag) || (tags == "*" && app.media.size(&name).await?.is_some()) {
            return Ok((StatusCode::NOT_MODIFIED, unchanging(&tag)).into_response());
        }
    }
    let asked = sent.get(header::RANGE).filter(|_| sent.get(header::IF_RANGE).is_none_or(|range| *range == *tag));
    let (status, range) = match asked {
        None => (StatusCode::OK, None),
        Some(asked) => {
            let size = app.media.size(&name).await?.ok_or(Error::NotFound)?;
            match part(asked, size) {
                Asked::Whole => (StatusCode::OK, None),
                Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, Some(range)),
                Asked::Beyond => {
                    let range = (header::CONTENT_RANGE, format!("bytes */{size}"));
                    return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [range]).into_response());
                }
            }
        }
    };
    let media = app.media.open(&name, range.clone()).await?.ok_or(Error::NotFound)?;
    let length = range.as_ref().map_or(media.size, |range| range.end - range.start);
    let mut response = (status, unchanging(&tag), Body::from_stream(media.content)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(name.kind().content_type()));
    headers.insert(header::CONTENT_LENGTH, length.into());
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("inline"));
    if let Some(range) = range {
        let range = format!("bytes {}-{}/{}", range.start, range.end - 1, media.size);
        headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(range).map_err(Error::internal)?);
    }
    Ok(response)
}

fn unchanging(tag: &str) -> [(HeaderName, String); 4] {
    [
        (header::ETAG, tag.to_owned()),
        (header::CACHE_CONTROL, "public, max-age=31536000, immutable".to_owned()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        // Opened on its own, a picture must neither run nor load anything.
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; sandbox".to_owned()),
    ]
}

fn lists(tags: &HeaderValue, tag: &str) -> bool {
    let tags = tags.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii);
    tags.map(|listed| listed.strip_prefix(b"W/").unwrap_or(listed)).any(|listed| listed == tag.as_bytes())
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Whole,
    Part(Range<u64>),
    /// The range is outside of the picture.
    Beyond,
}

/// What a `Range` header requests of `size` bytes. Several ranges, or a malformed one, mean the whole.
fn part(asked: &HeaderValue, size: u64) -> Asked {
    let bounds = asked.to_str().ok().and_then(|text| text.strip_prefix("bytes=")).and_then(|text| text.split_once('-'));
    let Some((first, last)) = bounds else { return Asked::Whole };
    // Only digits: the standard parser accepts a sign.
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
    match (first.trim(), last.trim()) {
        ("", last) => match number(last) {
            Some(0) => Asked::Beyond,
            Some(_) if size == 0 => Asked::Beyond,
            Some(count) => Asked::Part(size.saturating_sub(count)..size),
            None => Asked::Whole,
        },
        (first, last) => match (number(first), number(last)) {
            (Some(first), _) if first >= size => Asked::Beyond,
            (Some(first), None) if last.is_empty() => Asked::Part(first..size),
            (Some(first), Some(last)) if last >= first => Asked::Part(first..last.saturating_add(1).min(size)),
            _ => Asked::Whole,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        for (asked, expected) in [
            ("bytes=0-0", Asked::Part(0..1)),
            ("bytes=0-99", Asked::Part(0..100)),
            ("bytes=10-", Asked::Part(10..100)),
            ("bytes=90-500", Asked::Part(90..100)),
            ("bytes=-10", Asked::Part(90..100)),
            ("bytes=-500", Asked::Part(0..100)),
            ("bytes=100-", Asked::Beyond),
            ("bytes=-0", Asked::Beyond),
            ("bytes=5-4", Asked::Whole),
            ("bytes=0-1,5-6", Asked::Whole),
            ("bytes=+1-2", Asked::Whole),
            ("bytes=0-18446744073709551615", Asked::Part(0..100)),
            ("bytes=99999999999999999999-", Asked::Whole),
            ("lines=1-2", Asked::Whole),
            ("bytes=", Asked::Whole),
            ("bytes=-", Asked::Whole),
        ] {
            assert_eq!(part(&HeaderValue::from_static(asked), 100), expected, "{asked}");
        }
        assert_eq!(part(&HeaderValue::from_static("bytes=-5"), 0), Asked::Beyond);
    }

    #[test]
    fn etags_are_found_in_lists() {
        for tags in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "\"\u{e9}\",\"a\""] {
            assert!(lists(&HeaderValue::from_bytes(tags.as_bytes()).unwrap(), "\"a\""), "{tags}");
        }
        for tags in ["\"ab\"", "*", ""] {
            assert!(!lists(&HeaderValue::from_static(tags), "\"a\""), "{tags}");
        }
    }
}
