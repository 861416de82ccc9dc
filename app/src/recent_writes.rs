//! A browser's latest writes, in cookies that last a minute, so that its next list includes them on every instance,
//! even if the store's lists lag. Cookies cost the store nothing and fail no request. A forged cookie reveals nothing
//! that lists do not show.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

use crate::data::Cursor;
use crate::sessions;

/// Lists that must include a browser's own writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecentWrites {
    Posts,
    Logins,
}

impl RecentWrites {
    fn cookie(self) -> &'static str {
        match self {
            Self::Posts => "posted",
            Self::Logins => "logged-in",
        }
    }

    /// The rows that the browser has added, latest first.
    pub fn read(self, headers: &HeaderMap) -> Vec<Cursor> {
        sessions::cookies(headers, self.cookie())
            .flat_map(|rows| rows.split(SEPARATOR))
            .filter_map(|row| row.parse().ok())
            .take(MAX_ENTRIES)
            .collect()
    }

    /// The cookie with a row added to `before`.
    pub fn with(self, row: Cursor, mut before: Vec<Cursor>, secure: bool) -> HeaderValue {
        before.retain(|other| other.id != row.id);
        before.insert(0, row);
        before.truncate(MAX_ENTRIES);
        let rows: Vec<_> = before.iter().map(Cursor::to_string).collect();
        sessions::set_cookie(self.cookie(), &rows.join(SEPARATOR), "/", Some(MAX_AGE), secure)
    }
}

/// Limit per list: as many as somebody can write before the lists have caught up.
const MAX_ENTRIES: usize = 4;
const MAX_AGE: Duration = Duration::from_secs(60);
const SEPARATOR: &str = "_";

#[cfg(test)]
mod tests {
    use http::header;
    use uuid::Uuid;

    use super::*;
    use crate::data::Millis;

    #[test]
    fn the_latest_writes_are_remembered_by_list() {
        let rows: Vec<_> = (0..6).map(|n| Cursor { at: Millis(n), id: Uuid::now_v7() }).collect();
        let mut headers = HeaderMap::new();
        for row in &rows {
            let cookie = RecentWrites::Posts.with(*row, RecentWrites::Posts.read(&headers), false);
            let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
            headers.insert(header::COOKIE, format!("id=x; {pair}").parse().unwrap());
        }
        assert_eq!(RecentWrites::Posts.read(&headers), [rows[5], rows[4], rows[3], rows[2]]);
        assert_eq!(RecentWrites::Logins.read(&headers), []);
    }

    #[test]
    fn entries_of_a_forged_cookie_are_bounded() {
        let row = Cursor { at: Millis(1), id: Uuid::now_v7() };
        let many = vec![row.to_string(); 100].join(SEPARATOR);
        for (sent, found) in [(many.as_str(), MAX_ENTRIES), ("", 0), ("x_y", 0), ("1.", 0)] {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, format!("posted={sent}").parse().unwrap());
            assert_eq!(RecentWrites::Posts.read(&headers).len(), found, "{sent}");
        }
    }

    #[test]
    fn the_cookies_are_http_only_and_same_site() {
        let row = Cursor { at: Millis(1), id: Uuid::now_v7() };
        let cookie = |secure| RecentWrites::Logins.with(row, Vec::new(), secure).to_str().unwrap().to_owned();
        assert!(cookie(false).contains("; Max-Age=60; HttpOnly; SameSite=Lax") && !cookie(false).contains("Secure"));
        assert!(cookie(true).ends_with("; Secure"));
    }
}
