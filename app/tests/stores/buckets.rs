//! Pictures in buckets of both kinds.

use std::io::{Seek, Write};
use std::time::Instant;

use app::data::UserName;
use app::error::StoreError;
use app::media::{Bucket, Checks, Limits, MediaName, MediaStore, ObjectMedia, Spool, contract};
use app::tls;
use futures_util::TryStreamExt;

use crate::emulator::Emulator;

fn open(bucket: &str, emulator: &Emulator) -> ObjectMedia {
    ObjectMedia::in_bucket(&bucket.parse::<Bucket>().unwrap(), emulator.environment()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_s3_keeps_the_contract() {
    let emulator = Emulator::s3();
    contract::run(&open("s3://pictures/site", &emulator), &open("s3://pictures/site", &emulator)).await;
    let empty = tokio::fs::File::from_std(tempfile::tempfile().unwrap());
    let error = open("s3://no-such-bucket", &emulator).put(&name().await, empty).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_google_cloud_keeps_the_contract() {
    let emulator = Emulator::google_cloud();
    contract::run(&open("gs://pictures/site", &emulator), &open("gs://pictures/site", &emulator)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_picture_is_uploaded_in_parts_and_keeps_its_type() {
    let emulator = Emulator::s3();
    let media = open("s3://pictures/site", &emulator);
    let name = name().await;
    // Two full parts and a rest.
    let content: Vec<u8> = (0..12_000_000_u32).map(|n| (n % 251) as u8).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content).unwrap();
    file.rewind().unwrap();
    media.put(&name, tokio::fs::File::from_std(file)).await.unwrap();

    let mut found = media.open(&name, None).await.unwrap().unwrap().content;
    let mut read = Vec::new();
    while let Some(part) = found.try_next().await.unwrap() {
        read.extend_from_slice(&part);
    }
    assert!(read == content, "{} of {} bytes", read.len(), content.len());
    tls::choose_provider();
    let object = emulator.object(&format!("site/{}/{name}", &name.to_string()[..2]));
    let head = reqwest::Client::builder().no_proxy().build().unwrap().head(object).send().await.unwrap();
    assert_eq!(head.headers()["content-type"], "image/png");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_bucket_fails_soon() {
    let emulator = Emulator::s3();
    let media = open("s3://pictures/site", &emulator);
    media.ready().await.unwrap();
    drop(emulator);
    let begun = Instant::now();
    let error = media.ready().await.unwrap_err();
    println!("| the bucket away | an error after {:.1} s |", begun.elapsed().as_secs_f64());
    assert!(matches!(error, StoreError::Unavailable(_)) && begun.elapsed().as_secs() < 10, "{error}");
}

/// The name of a picture.
async fn name() -> MediaName {
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { bytes: 10_000, pixels: 100 };
    let mut spool = Spool::new(limits).await.unwrap();
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::new(4, 4).write_to(&mut png, image::ImageFormat::Png).unwrap();
    spool.push(&png.into_inner()).await.unwrap();
    let store = ObjectMedia::in_folder(folder.path()).unwrap();
    spool
        .keep(&store, &Checks::default(), &"ann".parse::<UserName>().unwrap().key(), limits)
        .await
        .unwrap()
        .unwrap()
        .name
}
