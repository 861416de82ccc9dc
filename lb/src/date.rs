//! The current time in the format of the `Date` field (RFC 9110 §5.6.7), formatted once a second per thread.

use std::cell::Cell;
use std::time::UNIX_EPOCH;

use jiff::Timestamp;

use crate::clock;

/// `Sun, 06 Nov 1994 08:49:37 GMT`
pub(crate) type Date = [u8; 29];

thread_local! {
    /// The second since 1970, and its text.
    static LAST: Cell<(u64, Date)> = const { Cell::new((0, *b"Thu, 01 Jan 1970 00:00:00 GMT")) };
}

/// The current date and time.
pub(crate) fn now() -> Date {
    // A clock set before 1970 counts as 1970.
    let second = clock::wall().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (last, date) = LAST.get();
    if last == second {
        return date;
    }
    let date = written(second).unwrap_or(date);
    LAST.set((second, date));
    date
}

fn written(second: u64) -> Option<Date> {
    let time = Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
    time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string().as_bytes().try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn dates_are_formatted_as_rfc_9110_requires() {
        assert_eq!(written(784_111_777).as_ref(), Some(b"Sun, 06 Nov 1994 08:49:37 GMT"));
        assert_eq!(written(0), Some(LAST.get().1));
        assert_eq!(written(u64::MAX), None);
    }

    #[test]
    fn the_current_time_is_formatted() {
        let before = SystemTime::now();
        let date = now();
        let second = |time: SystemTime| time.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let possible = second(before)..=second(SystemTime::now());
        assert!(possible.clone().any(|second| written(second) == Some(date)), "{date:?}, not in {possible:?}");
    }
}
