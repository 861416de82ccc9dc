use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use app::Stores;
use app::data::{self, Cursor, DataStore, Login, Post, Readiness, Signup, User, UserKey};
use app::error::StoreError;
use app::media::{Media, MediaName, MediaStore};
use app::server::Stop;
use app::sessions::{Count, Id, Loaded, Reachability, Record, SessionStore};
use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Browser, Site};

#[tokio::test]
async fn hello_has_message_and_hostname() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let answer = Browser::new().get(&web1, "/api/hello/").await;
    assert_eq!(answer.header("content-type"), "application/json");
    let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(body["hostname"], "web1");
    assert!(body["message"].is_string());
    assert!(answer.header("set-cookie").is_empty(), "programs get no session");
}

#[tokio::test]
async fn unknown_paths_are_404_as_html_or_json() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    Browser::new().get(&web1, "/nowhere").await.says(404, &["Nothing here", "<nav"]);
    let answer = Browser::new().get(&web1, "/api/nowhere").await;
    answer.says(404, &["\"status\":404"]);
    assert_eq!(answer.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn a_wrong_method_is_405_with_allow() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let answer = Browser::new().post(&web1, "/", &[]).await;
    answer.says(405, &["Not that way"]);
    assert!(answer.header("allow").contains("GET"));
}

#[tokio::test]
async fn every_page_has_security_headers_and_a_request_id() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    for path in ["/", "/posts/", "/accounts/login/", "/nowhere"] {
        let sent =
            Browser::new().request(&web1, path).header("x-request-id", "from-the-balancer").send().await.unwrap();
        let header = |name: &str| sent.headers()[name].to_str().unwrap();
        assert!(header("content-security-policy").starts_with("default-src 'none'"));
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("x-request-id"), "from-the-balancer");
    }
}

#[tokio::test]
async fn the_style_sheet_of_each_page_exists() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    let page = browser.get(&web1, "/").await;
    let from = page.body.find("/static/style-").unwrap();
    let sheet = browser.get(&web1, page.body[from..].split('"').next().unwrap()).await;
    sheet.says(200, &["--tint"]);
    assert!(sheet.header("cache-control").contains("immutable"));
    let other = browser.get(&web1, "/static/style-of-another-version.css").await;
    other.says(200, &["--tint"]);
    assert_eq!(other.header("cache-control"), "no-store");
    browser.get(&web1, "/static/icon-1.svg").await.says(200, &["<svg"]);
    for path in ["/static/icon-0.svg", "/static/icon-7.svg", "/static/x"] {
        browser.get(&web1, path).await.says(404, &[]);
    }
}

#[tokio::test]
async fn a_path_without_its_last_slash_is_redirected() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let answer = Browser::new().get(&web1, "/accounts/login").await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (308, "/accounts/login/"));
}

#[tokio::test]
async fn metrics_count_by_route_and_are_not_public() {
    let site = Site::new();
    let web1 = site.start("web1").await;
    let browser = Browser::new();
    browser.sign_up(&web1, "ann").await;
    browser.log_in(&web1, "ann", "wrong password").await;
    browser.get(&web1, "/nowhere/at/all").await;
    browser.get(&web1, "/metrics").await.says(
        200,
        &[
            r#"app_requests_total{code="3xx",method="POST",route="/accounts/signup/"} 1"#,
            r#"app_requests_total{code="4xx",method="GET",route="unmatched"} 1"#,
            r#"app_logins_total{result="wrong_password"} 1"#,
            r#"app_store_operation_duration_seconds_count{operation="create_user",store="data"} 1"#,
            "app_sessions_created_total 1",
            "app_request_duration_seconds_bucket",
        ],
    );
    let forwarded = browser.request(&web1, "/metrics").header("x-forwarded-for", "203.0.113.9").send().await.unwrap();
    assert_eq!(forwarded.status(), 404);
}

#[tokio::test]
async fn stopping_becomes_unready_and_finishes_requests_in_flight() {
    let mut site = Site::new();
    // Until the test says so.
    site.settings.shutdown_delay = Duration::from_secs(3600);
    let web1 = site.start("web1").await;
    let (address, app) = (web1.address, Arc::clone(&web1.app));
    // A request whose body is still being sent when the stop comes, and an idle connection.
    let mut busy = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /accounts/login/ HTTP/1.1\r\nHost: {address}\r\nOrigin: http://{address}\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 8\r\n\r\nname"
    );
    busy.write_all(head.as_bytes()).await.unwrap();
    while app.metrics.requests_in_flight.get() == 0 {
        tokio::task::yield_now().await;
    }
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(read_until(&mut idle, "ready\n").await.starts_with("HTTP/1.1 200"));

    let (stop, stopped) = web1.announce();
    while !app.is_leaving() {
        tokio::task::yield_now().await;
    }
    // It reports this on old and new connections, and keeps answering.
    for path in ["/readyz", "/healthz"] {
        let mut new = TcpStream::connect(address).await.unwrap();
        new.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let answer = read_to_end(&mut new).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("stopping\n"), "{answer}");
    }
    idle.write_all(b"GET /api/hello/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let answer = read_to_end(&mut idle).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.to_lowercase().contains("\r\nconnection: close\r\n"),
        "{answer}"
    );

    stop.send(Stop::Now).unwrap();
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    busy.write_all(b"=ann").await.unwrap();
    let answer = read_to_end(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    stopped.await.unwrap();
}

#[tokio::test]
async fn a_client_that_never_finishes_its_head_is_disconnected() {
    let mut site = Site::new();
    site.settings.header_timeout = Duration::from_millis(50);
    let web1 = site.start("web1").await;
    let mut slow = TcpStream::connect(web1.address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nHost: ").await.unwrap();
    let mut rest = Vec::new();
    // Ends when the server closes the connection.
    slow.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn a_body_that_never_ends_times_out() {
    let mut site = Site::new();
    site.settings.request_timeout = Duration::from_millis(50);
    let web1 = site.start("web1").await;
    let mut slow = TcpStream::connect(web1.address).await.unwrap();
    let head = "POST /accounts/login/ HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\n\
                Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 8\r\n\r\nname";
    slow.write_all(head.as_bytes()).await.unwrap();
    assert!(read_until(&mut slow, "That took too long").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn without_sessions_the_home_page_still_names_the_instance() {
    let site = Site::new();
    let stores = Stores { sessions: Arc::new(OutOfReach), ..site.stores() };
    let web1 = site.start_on("web1", stores).await;
    let browser = Browser::new();
    let cookie = format!("id={}", Id::default());
    let ask = |path| browser.request(&web1, path).header("cookie", &cookie).send();
    let home = ask("/").await.unwrap();
    assert_eq!(home.status(), 200);
    let home = home.text().await.unwrap();
    assert!(home.contains("web1") && home.contains("Sessions cannot be reached"), "{home}");
    // Not sent to log in: nobody is logged out because of our failure.
    assert_eq!(ask("/accounts/logs/").await.unwrap().status(), 503);
    browser.get(&web1, "/readyz?alone").await.says(503, &["out of reach: sessions"]);
    browser.get(&web1, "/healthz").await.says(200, &["ok"]);
}

#[tokio::test]
async fn without_data_the_site_answers_503_and_hides_the_cause() {
    let site = Site::new();
    let stores = Stores { data: Arc::new(OutOfReach), media: Arc::new(OutOfReach), ..site.stores() };
    let web1 = site.start_on("web1", stores).await;
    let browser = Browser::new();
    let answer = browser.log_in(&web1, "ann", "some password").await;
    answer.says(503, &["Storage is out of reach", "Request"]);
    assert!(!answer.body.contains(CAUSE));
    assert_eq!(answer.header("retry-after"), "3");
    browser.get(&web1, "/posts/").await.says(503, &["Storage is out of reach"]);
    let picture = format!("/media/{}.png", "0a".repeat(32));
    browser.get(&web1, &picture).await.says(503, &["Storage is out of reach"]);
    browser.get(&web1, "/readyz?alone").await.says(503, &["out of reach: data, media"]);
    browser.get(&web1, "/").await.says(200, &["web1"]);
}

#[tokio::test]
async fn an_instance_without_a_store_is_unready_only_while_a_peer_has_it() {
    let mut site = Site::new();
    let lost = |site: &Site| Stores { sessions: Arc::new(OutOfReach), ..site.stores() };
    let peers = |instances: &[&crate::fixture::Running]| {
        instances.iter().map(|instance| instance.address.to_string().parse().unwrap()).collect()
    };
    let browser = Browser::new();
    let well = site.start("web1").await;
    browser.get(&well, "/readyz").await.says(200, &["ready"]);

    // No other instance is known.
    let web2 = site.start_on("web2", lost(&site)).await;
    browser.get(&web2, "/readyz").await.says(200, &["out of reach: sessions; and no other"]);
    // Another one has lost it too, and so has this one.
    site.settings.peers = peers(&[&web2]);
    let web3 = site.start_on("web3", lost(&site)).await;
    browser.get(&web3, "/readyz").await.says(200, &["out of reach: sessions; and no other"]);
    // One has not.
    site.settings.peers = peers(&[&web2, &well]);
    let web4 = site.start_on("web4", lost(&site)).await;
    browser.get(&web4, "/readyz").await.says(503, &["out of reach: sessions"]);
    // Until that one is gone.
    well.stop().await.unwrap();
    browser.get(&web4, "/readyz").await.says(200, &["out of reach: sessions; and no other"]);
}

/// Everything that arrives until the server closes the connection.
async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(end) {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the connection ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen
}

/// All stores at once; none of them answers.
#[derive(Debug)]
struct OutOfReach;

const CAUSE: &str = "connection refused by 10.1.2.3";

impl OutOfReach {
    fn fail<T>() -> Result<T, StoreError> {
        Err(StoreError::unavailable(CAUSE))
    }
}

#[async_trait]
impl DataStore for OutOfReach {
    async fn create_user(&self, _: &User) -> data::Result<Signup> {
        Self::fail()
    }

    async fn user(&self, _: &UserKey) -> data::Result<Option<User>> {
        Self::fail()
    }

    async fn record_login(&self, _: &Login) -> data::Result<()> {
        Self::fail()
    }

    async fn logins(&self, _: &UserKey, _: Option<Cursor>, _: usize, _: &[Cursor]) -> data::Result<Vec<Login>> {
        Self::fail()
    }

    async fn add_post(&self, _: &Post) -> data::Result<()> {
        Self::fail()
    }

    async fn posts(&self, _: Option<Cursor>, _: usize, _: &[Cursor]) -> data::Result<Vec<Post>> {
        Self::fail()
    }

    async fn ready(&self) -> data::Result<Readiness> {
        Self::fail()
    }
}

#[async_trait]
impl MediaStore for OutOfReach {
    async fn put(&self, _: &MediaName, _: tokio::fs::File) -> Result<(), StoreError> {
        Self::fail()
    }

    async fn open(&self, _: &MediaName, _: Option<Range<u64>>) -> Result<Option<Media>, StoreError> {
        Self::fail()
    }

    async fn size(&self, _: &MediaName) -> Result<Option<u64>, StoreError> {
        Self::fail()
    }

    async fn ready(&self) -> Result<(), StoreError> {
        Self::fail()
    }
}

#[async_trait]
impl SessionStore for OutOfReach {
    async fn create(&self, _: &Record) -> Result<bool, StoreError> {
        Self::fail()
    }

    async fn save(&self, _: &Record) -> Result<bool, StoreError> {
        Self::fail()
    }

    async fn load(&self, _: &Id) -> Result<Loaded, StoreError> {
        Self::fail()
    }

    async fn delete(&self, _: &Id) -> Result<(), StoreError> {
        Self::fail()
    }

    async fn enrol(&self, _: &str, _: &str, _: Duration) -> Result<Vec<String>, StoreError> {
        Self::fail()
    }

    async fn list(&self, _: &str) -> Result<Vec<String>, StoreError> {
        Self::fail()
    }

    async fn strike(&self, _: &str, _: &[String]) -> Result<(), StoreError> {
        Self::fail()
    }

    async fn count(&self, _: &str, _: &str, _: Duration) -> Result<Count, StoreError> {
        Self::fail()
    }

    async fn uncount(&self, _: &str, _: &str) -> Result<(), StoreError> {
        Self::fail()
    }

    async fn reach(&self) -> Result<Reachability, StoreError> {
        Self::fail()
    }
}
