use std::time::Duration;

use app::media::Limits;
use reqwest::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Browser, Running, Site, png};

async fn posted(browser: &Browser, instance: &Running) -> (String, Vec<u8>) {
    let picture = png(50, 20);
    browser.sign_up(instance, "ann").await;
    browser.upload(instance, &[("text", "Look")], Some(picture.clone())).await;
    let address = browser.get(instance, "/posts/").await.picture().unwrap().to_owned();
    (address, picture)
}

#[tokio::test]
async fn a_picture_is_served_with_its_type_and_cached_forever() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    let (address, picture) = posted(&browser, &web1).await;
    let response = browser.request(&web1, &address).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "image/png");
    assert_eq!(header("content-length"), picture.len().to_string());
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert!(header("content-security-policy").contains("sandbox"));
    assert!(header("cache-control").contains("immutable"));
    assert_eq!(response.bytes().await.unwrap(), picture);
}

#[tokio::test]
async fn a_cached_picture_is_not_sent_again() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    let (address, _) = posted(&browser, &web1).await;
    let first = browser.request(&web1, &address).send().await.unwrap();
    let tag = first.headers()["etag"].clone();
    let second = browser.request(&web1, &address).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(second.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(second.headers()["etag"], tag);
    // Of any content: there is none without a picture.
    let unknown = format!("/media/{}.png", "0a".repeat(32));
    for (path, status) in [(&address, 304), (&unknown, 404)] {
        let any = browser.request(&web1, path).header("if-none-match", "*").send().await.unwrap();
        assert_eq!(any.status(), status);
    }
}

#[tokio::test]
async fn ranges_of_a_picture_are_served() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    let (address, picture) = posted(&browser, &web1).await;
    let ask = |range: &'static str| browser.request(&web1, &address).header("range", range).send();

    let part = ask("bytes=1-3").await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()["content-range"], format!("bytes 1-3/{}", picture.len()));
    assert_eq!(part.bytes().await.unwrap(), "PNG");

    let beyond = ask("bytes=1000000-").await.unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(beyond.headers()["content-range"], format!("bytes */{}", picture.len()));

    let outdated = browser.request(&web1, &address).header("range", "bytes=1-3").header("if-range", "\"other\"");
    assert_eq!(outdated.send().await.unwrap().bytes().await.unwrap(), picture);
}

#[tokio::test]
async fn unknown_picture_names_are_404() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    let unknown = format!("/media/{}.png", "0a".repeat(32));
    for path in [unknown.as_str(), "/media/x.png", "/media/..%2f..%2fdata.sqlite3", "/media/", "/media/%ff"] {
        let answer = browser.get(&web1, path).await;
        assert!(matches!(answer.status.as_u16(), 400 | 404), "{path}: {}", answer.status);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_picture_is_disconnected() {
    let mut site = Site::new();
    site.settings.write_timeout = Duration::from_millis(200);
    // More than all buffers on the way hold.
    site.settings.pictures = Limits { bytes: 20_000_000, pixels: 100_000 };
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    let mut large = png(20, 20);
    large.resize(16_000_000, 0);
    browser.upload(&web1, &[("text", "Large")], Some(large)).await;
    let page = browser.get(&web1, "/posts/").await;
    let mut slow = TcpStream::connect(web1.address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", page.picture().unwrap());
    slow.write_all(request.as_bytes()).await.unwrap();
    // The browser keeps one open.
    let connections = &web1.app.metrics.connections;
    while connections.get() < 2 {
        tokio::task::yield_now().await;
    }
    while connections.get() > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut rest = Vec::new();
    let ended = slow.read_to_end(&mut rest).await;
    assert!(ended.is_err() || rest.len() < 16_000_000, "{} bytes", rest.len());
}
