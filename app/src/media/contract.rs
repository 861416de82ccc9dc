//! What every [`MediaStore`] must do. Each implementation calls [`run`] from its own test.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::io::Write;
use std::ops::Range;

use bytes::BytesMut;
use futures_util::TryStreamExt;
use sha2::{Digest, Sha256};

use super::{Kind, MediaName, MediaStore};
use crate::given_up;

/// Runs the suite. `one` and `other` are two handles, as of two instances, on the same pictures.
pub async fn run(one: &dyn MediaStore, other: &dyn MediaStore) {
    one.ready().await.unwrap();
    what_one_puts_the_other_opens(one, other).await;
    putting_twice_is_harmless(one, other).await;
    a_range_gives_that_part(one, other).await;
    an_unknown_name_is_nothing(one).await;
    a_picture_given_up_leaves_the_others_alone(one, other).await;
}

async fn what_one_puts_the_other_opens(one: &dyn MediaStore, other: &dyn MediaStore) {
    // More than one part, and no multiple of anything.
    for size in [0, 1, 1_234_567] {
        let (name, content) = fresh(size);
        one.put(&name, file(&content)).await.unwrap();
        assert_eq!(read(other, &name, None).await, content);
        assert_eq!(other.size(&name).await.unwrap(), Some(size as u64));
    }
}

async fn putting_twice_is_harmless(one: &dyn MediaStore, other: &dyn MediaStore) {
    let (name, content) = fresh(300_000);
    let (first, second) = tokio::join!(one.put(&name, file(&content)), other.put(&name, file(&content)));
    first.unwrap();
    second.unwrap();
    one.put(&name, file(&content)).await.unwrap();
    assert_eq!(read(other, &name, None).await, content);
}

async fn a_range_gives_that_part(one: &dyn MediaStore, other: &dyn MediaStore) {
    let (name, content) = fresh(1_000);
    one.put(&name, file(&content)).await.unwrap();
    assert_eq!(read(other, &name, Some(0..1)).await, content[..1]);
    assert_eq!(read(other, &name, Some(990..1_000)).await, content[990..]);
    let part = other.open(&name, Some(10..20)).await.unwrap().unwrap();
    assert_eq!(part.size, 1_000);
}

async fn an_unknown_name_is_nothing(one: &dyn MediaStore) {
    let (name, _) = fresh(10);
    assert!(one.open(&name, None).await.unwrap().is_none());
    assert_eq!(one.size(&name).await.unwrap(), None);
}

/// A dropped future, or a picture that was read only partially, must not leave its connection with pending data to the
/// next operation.
async fn a_picture_given_up_leaves_the_others_alone(one: &dyn MediaStore, other: &dyn MediaStore) {
    let (large, content) = fresh(1_234_567);
    let (small, few) = fresh(10);
    one.put(&large, file(&content)).await.unwrap();
    one.put(&small, file(&few)).await.unwrap();
    for waits in 0.. {
        let (name, content) = fresh(300_000);
        let kept = given_up::after(waits, one.put(&name, file(&content))).await.is_some();
        let found = other.size(&name).await.unwrap();
        assert!(found.is_none_or(|size| size == content.len() as u64), "half a picture after {waits} waits");

        let begun = given_up::after(waits, async {
            let mut media = one.open(&large, None).await.unwrap().unwrap();
            media.content.try_next().await.unwrap();
        });
        let begun = begun.await.is_some();
        assert_eq!(one.size(&small).await.unwrap(), Some(few.len() as u64), "after {waits} waits");
        assert_eq!(read(one, &small, None).await, few, "after {waits} waits");
        if kept && begun {
            return;
        }
    }
}

async fn read(store: &dyn MediaStore, name: &MediaName, range: Option<Range<u64>>) -> Vec<u8> {
    let media = store.open(name, range).await.unwrap().unwrap();
    let content: BytesMut = media.content.try_collect().await.unwrap();
    content.to_vec()
}

fn file(content: &[u8]) -> tokio::fs::File {
    use std::io::Seek;

    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file.rewind().unwrap();
    tokio::fs::File::from_std(file)
}

/// Content that no other run has stored.
fn fresh(size: usize) -> (MediaName, Vec<u8>) {
    let seed = uuid::Uuid::new_v4();
    let content: Vec<u8> = seed.as_bytes().iter().copied().cycle().take(size).collect();
    let digest = if size == 0 { Sha256::digest(seed.as_bytes()) } else { Sha256::digest(&content) };
    (MediaName { digest: digest.into(), kind: Kind::Png }, content)
}
