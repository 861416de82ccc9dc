//! Waiting for a condition instead of for a duration. The deadline is what a hopelessly slow machine may take; a test
//! that passes never waits for it.

use std::future::Future;
use std::time::Duration;

pub const DEADLINE: Duration = Duration::from_secs(20);

const PAUSE: Duration = Duration::from_millis(10);

/// Returns once `condition` holds; panics with `what` at the deadline.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    found_eventually(what, async || condition().await.then_some(())).await;
}

/// What `search` finds, as soon as it does; panics with `what` at the deadline.
pub async fn found_eventually<T>(what: &str, mut search: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            match search().await {
                Some(found) => return found,
                None => tokio::time::sleep(PAUSE).await,
            }
        }
    })
    .await
}

/// The output of `future`; panics with `what` when it has none at the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Whether the kernel tells how much a peer has acknowledged in the form that Evenkeel asks for (Linux 6.2). If not, a
/// test that needs it says so.
pub fn is_acknowledgement_told() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse::<u32>().ok());
    let is_told = (numbers.next(), numbers.next()) >= (Some(6), Some(2));
    if !is_told {
        println!("NOT RUN: Linux {} does not tell what a peer has acknowledged as Linux 6.2 does", release.trim());
    }
    is_told
}
