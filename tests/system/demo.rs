//! `app demo` does what the README says: one run by a user with a browser, from sign-up to Ctrl-C.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use base64::Engine;
use serde_json::json;
use tempfile::TempDir;
use tests::app::{Demo, demo};
use tests::browser::Browser;
use tests::process::Process;
use tests::{Request, Wire, eventually, found_eventually};

#[tokio::test]
async fn a_person_signs_up_posts_a_picture_and_loses_nothing_when_an_instance_dies() {
    let mut demo = Demo::start().await;
    let browser = Browser::start().await;
    let site = demo.address;

    browser.open(site, "/accounts/signup/").await;
    browser.type_into("name", "ada").await;
    browser.type_into("password", "correct horse battery").await;
    browser.click("main form button[type=submit]").await;
    assert_logged_in(&browser).await;

    browser.click("nav form button").await;
    eventually("logged out", async || !browser.has("nav .who").await).await;
    browser.open(site, "/accounts/login/").await;
    browser.type_into("name", "ada").await;
    browser.type_into("password", "correct horse battery").await;
    browser.click("main form button[type=submit]").await;
    assert_logged_in(&browser).await;

    let files = TempDir::new().expect("a temporary directory");
    browser.open(site, "/posts/").await;
    browser.type_into("text", "A square, seen from above").await;
    browser.type_into("alt", "A red square").await;
    browser.choose_file("picture", &picture(files.path())).await;
    browser.click("form[action='/posts/'] button[type=submit]").await;
    assert_eq!(browser.text("article.post p.text").await, "A square, seen from above");
    assert_picture_is_shown(&browser).await;

    for algorithm in ["least-connections", "weighted", "ip-hash"] {
        switch(demo.admin, algorithm).await;
        browser.open(site, "/posts/").await;
        assert_logged_in(&browser).await;
    }
    // With ip-hash the instance that has just answered would answer again.
    let answered = browser.text("footer strong").await;
    demo.part(&answered).kill();
    demo.part(&answered).ended().await;
    for _ in 0..6 {
        browser.open(site, "/posts/").await;
        assert_ne!(browser.text("footer strong").await, answered);
        assert_logged_in(&browser).await;
        assert_picture_is_shown(&browser).await;
    }
    browser.open(site, "/accounts/logs/").await;
    assert!(browser.text("main").await.contains("127.0.0.1"), "the history of logins is there");
    found_eventually("the guide tells who is gone", async || {
        demo.output().lines().find(|line| line.starts_with(&answered)).map(str::to_owned)
    })
    .await;
    browser.close().await;

    demo.interrupt().await;
    for part in &demo.parts {
        part.ended().await;
    }
    for address in [demo.address, demo.admin] {
        assert!(Wire::try_connect(address).await.is_err(), "{address} is free again");
    }
}

#[tokio::test]
async fn every_instance_serves_and_shows_its_name() {
    let mut demo = Demo::start().await;
    let mut wire = Wire::connect(demo.address).await;
    let mut names = Vec::new();
    for _ in 0..6 {
        let reply = wire.exchange(&Request::get("/api/hello/")).await;
        assert_eq!(reply.status, 200);
        names.push(reply.json()["hostname"].as_str().expect("a name").to_owned());
    }
    names.sort();
    assert_eq!(names, ["web1", "web1", "web2", "web2", "web3", "web3"]);
    demo.interrupt().await;
}

#[tokio::test]
async fn a_port_in_use_is_reported_before_anything_starts() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port();
    let directory = TempDir::new().expect("a temporary directory");
    let mut process = Process::start(demo(directory.path(), port), &directory.path().join("demo.log"));
    let status = process.end().await;
    assert!(!status.success());
    let output = process.output();
    assert!(output.contains(&port.to_string()) && output.contains("taken") && output.contains("--port"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
}

async fn switch(admin: SocketAddr, algorithm: &str) {
    let request =
        Request::new("POST", "/admin/algorithm").with("Host", "localhost").json(&json!({ "algorithm": algorithm }));
    let reply = Wire::connect(admin).await.exchange(&request).await;
    assert_eq!((reply.status, &reply.json()["pools"][0]["current"]), (200, &json!(algorithm)));
}

async fn assert_logged_in(browser: &Browser) {
    eventually("the page knows who is there", async || browser.text("nav").await.contains("ada")).await;
}

async fn assert_picture_is_shown(browser: &Browser) {
    let script = "const i = document.querySelector('article.post img'); i.scrollIntoView(); \
                  return i.complete && i.naturalWidth";
    eventually("the picture is shown", async || browser.run(script).await.as_u64().is_some_and(|w| w > 0)).await;
}

/// A PNG with 2 by 2 red pixels.
const PICTURE: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAIAAAD91JpzAAAAEElEQVR42mP4z8AARAwQCgAf7gP9Y167WwAAAABJRU5ErkJggg==";

fn picture(directory: &Path) -> PathBuf {
    let file = directory.join("square.png");
    let bytes = base64::engine::general_purpose::STANDARD.decode(PICTURE).expect("base64");
    std::fs::write(&file, bytes).expect("a writable directory");
    file
}
