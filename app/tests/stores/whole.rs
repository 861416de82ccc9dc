//! The whole site as in production: processes that share a Redis Cluster, a database and a bucket, and store nothing on
//! their own disks.

use std::fs;
use std::io::{BufRead, BufReader, Cursor};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use app::tls;
use reqwest::multipart::{Form, Part};
use reqwest::redirect::Policy;
use reqwest::{Client, Response};
use tests::redis_cluster::{Options, RedisCluster};

use crate::databases::in_own_schema;
use crate::emulator::Emulator;
use crate::postgres::Postgres;
use crate::standin::CrateStandIn;

/// A process of `app serve`.
pub struct Instance {
    process: Child,
    pub url: String,
}

/// The stores shared by the instances.
pub struct Shared {
    folder: tempfile::TempDir,
    redis: RedisCluster,
    bucket: Emulator,
    data: Data,
}

pub enum Data {
    Postgres(Postgres),
    CrateDb(String),
}

impl Shared {
    pub fn start(data: Data) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let redis = RedisCluster::start(Options { replicas_of_each: 0, ..Options::default() });
        // With a line end, as editors write it.
        fs::write(folder.path().join("redis-password"), format!("{}\n", Options::default().password)).unwrap();
        fs::write(folder.path().join("database-password"), Postgres::PASSWORD).unwrap();
        Self { folder, redis, bucket: Emulator::s3(), data }
    }

    fn command(&self, name: &str) -> Command {
        let file = |name: &str| self.folder.path().join(name).into_os_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--trivial-passwords", "--name", name]);
        command.args(["--sessions", "redis-cluster", "--redis-nodes", &self.redis.addresses().join(",")]);
        command.arg("--redis-password-file").arg(file("redis-password"));
        command.args(["--redis-timeout", "3s", "--media", "s3://pictures/site"]);
        // Nothing may be written here.
        command.args(["--data-dir", "/proc/nowhere"]);
        // One address fails very often: see `races`.
        let login = ["--login-failures", "--login-failures-per-account", "--login-failures-per-address"];
        for flag in login.into_iter().chain(["--signups-per-address"]) {
            command.args([flag, "1000"]);
        }
        match &self.data {
            Data::Postgres(server) => {
                command.args(["--data", "postgres", "--database-url", &server.url(&[server.port])]);
                command.arg("--database-password-file").arg(file("database-password"));
            }
            Data::CrateDb(url) => {
                command.args(["--data", "cratedb", "--database-url", url]);
            }
        }
        command.envs(self.bucket.environment());
        command
    }

    fn instance(&self, name: &str) -> Instance {
        self.instance_with(name, &[])
    }

    pub fn instance_with(&self, name: &str, flags: &[&str]) -> Instance {
        let log = fs::File::create(self.folder.path().join(name)).unwrap();
        let mut process = self.command(name).args(flags).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = fs::read_to_string(self.folder.path().join(name)).unwrap();
        let address = line.trim().rsplit(' ').next().filter(|address| address.contains(':'));
        Instance { process, url: format!("http://{}", address.unwrap_or_else(|| panic!("it did not start: {log}"))) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A browser that does not follow redirects by itself.
struct Browser(Client);

impl Browser {
    fn new() -> Self {
        tls::choose_provider();
        Self(Client::builder().cookie_store(true).redirect(Policy::none()).no_proxy().build().unwrap())
    }

    async fn get(&self, instance: &Instance, path: &str) -> (u16, String) {
        read(self.0.get(format!("{}{path}", instance.url)).send().await.unwrap()).await
    }

    async fn post(&self, instance: &Instance, path: &str, fields: &[(&str, &str)]) -> (u16, String) {
        let request = self.0.post(format!("{}{path}", instance.url)).header("origin", &instance.url).form(fields);
        read(request.send().await.unwrap()).await
    }
}

async fn read(response: Response) -> (u16, String) {
    (response.status().as_u16(), response.text().await.unwrap())
}

/// A member signs up at one instance, posts a picture at another, and everyone sees it.
async fn tour(shared: &Shared) {
    let (web1, web2) = (shared.instance("web1"), shared.instance("web2"));
    let browser = Browser::new();
    let name = format!("n{}", &uuid::Uuid::new_v4().simple().to_string()[..20]);
    let credentials = [("name", name.as_str()), ("password", "correct horse battery")];
    assert_eq!(browser.post(&web1, "/accounts/signup/", &credentials).await.0, 303);
    let (status, page) = browser.get(&web2, "/accounts/logs/").await;
    assert!(status == 200 && page.contains(&name) && page.contains("web1"), "{page}");

    let mut png = Cursor::new(Vec::new());
    image::RgbImage::new(40, 30).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let picture = Part::bytes(png.into_inner()).file_name("a.png").mime_str("image/png").unwrap();
    let form = Form::new().text("text", format!("From {name}")).part("picture", picture);
    let request = browser.0.post(format!("{}/posts/", web2.url)).header("origin", &web2.url).multipart(form);
    assert_eq!(request.send().await.unwrap().status(), 303);
    let (_, posts) = browser.get(&web1, "/posts/").await;
    assert!(posts.contains(&format!("From {name}")), "{posts}");
    // Others see it a moment later.
    let stranger = Browser::new();
    let deadline = Instant::now() + Duration::from_secs(20);
    while !stranger.get(&web1, "/posts/").await.1.contains(&format!("From {name}")) {
        assert!(Instant::now() < deadline, "it is not in the list");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let ours = posts.find(&format!("From {name}")).unwrap();
    let from = ours + posts[ours..].find("src=\"/media/").unwrap() + 5;
    let picture = posts[from..].split('"').next().unwrap();
    let found = stranger.0.get(format!("{}{picture}", web1.url)).send().await.unwrap();
    assert_eq!((found.status().as_u16(), &found.headers()["content-type"]), (200, &"image/png".parse().unwrap()));

    let (_, metrics) = stranger.get(&web1, "/metrics").await;
    for metric in ["app_data_connections{state=\"most\"} 8", "app_redis_connections_replaced_total 0"] {
        assert!(metrics.contains(metric), "{metric} is missing in {metrics}");
    }
    if matches!(shared.data, Data::CrateDb(_)) {
        assert!(metrics.contains("app_cratedb_nodes "), "{metrics}");
    }
    let health = |path: &str| {
        let url = format!("{}{path}", web1.url);
        Command::new(env!("CARGO_BIN_EXE_app")).args(["health", "--url", &url]).output().unwrap()
    };
    assert!(health("/readyz").status.success());
    assert_eq!(health("/nowhere").status.code(), Some(1));

    assert_eq!(browser.post(&web1, "/accounts/logout/", &[]).await.0, 303);
    assert_eq!(browser.get(&web2, "/accounts/logs/").await.0, 303, "logged out everywhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_site_runs_on_stores_of_the_network() {
    let mut shared = Shared::start(Data::Postgres(Postgres::start()));
    tour(&shared).await;

    // Without Redis, pages that need no session work; the others report an error in time, and recover.
    let (web1, browser) = (shared.instance("web1"), Browser::new());
    let credentials = [("name", "ann"), ("password", "correct horse battery")];
    assert_eq!(browser.post(&web1, "/accounts/signup/", &credentials).await.0, 303);
    for place in 0..3 {
        shared.redis.stop_node(place);
    }
    let begun = Instant::now();
    let (status, page) = browser.get(&web1, "/accounts/logs/").await;
    assert!(status == 503 && page.contains("Storage is out of reach"), "{status}: {page}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let begun = Instant::now();
    for (path, words) in [("/", "Sessions cannot be reached"), ("/posts/", "From "), ("/api/hello/", "web1")] {
        let (status, page) = browser.get(&web1, path).await;
        assert!(status == 200 && page.contains(words), "{path}: {status}: {page}");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    for place in 0..3 {
        shared.redis.start_node(place);
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while browser.get(&web1, "/accounts/logs/").await.0 != 200 {
        assert!(Instant::now() < deadline, "it did not recover, or ann was logged out");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_site_runs_on_the_stand_in_for_cratedb() {
    let crate_db = CrateStandIn::start().await;
    crate_db.set_lag(Duration::from_millis(50));
    let shared = Shared::start(Data::CrateDb(crate_db.url()));
    tour(&shared).await;
    races(&shared).await;
    assert_eq!(crate_db.pipelined(), 0, "statements shared a connection");
    assert_eq!(crate_db.fetched(), 0, "lists were read in two phases");
}

/// If two members request the same name at once, one gets it. And no answer for a client that has left goes to another.
async fn races(shared: &Shared) {
    let (web1, web2) = (shared.instance("web1"), shared.instance("web2"));
    let (browser, other) = (Browser::new(), Browser::new());
    let mut name = String::new();
    for _ in 0..10 {
        name = format!("n{}", &uuid::Uuid::new_v4().simple().to_string()[..20]);
        let credentials = [("name", name.as_str()), ("password", "correct horse battery")];
        let (one, two) = tokio::join!(
            browser.post(&web1, "/accounts/signup/", &credentials),
            other.post(&web2, "/accounts/signup/", &credentials)
        );
        let statuses = [one.0.min(two.0), one.0.max(two.0)];
        assert_eq!(statuses, [303, 409], "{}{}", one.1, two.1);
    }

    let right = [("name", name.as_str()), ("password", "correct horse battery")];
    let leaving = Browser::new();
    for after in (0..60).map(|step| Duration::from_micros(500) * step) {
        let wrong = [("name", "nobody"), ("password", "correct horse battery")];
        let left = tokio::time::timeout(after, leaving.post(&web1, "/accounts/login/", &wrong)).await;
        assert!(left.is_err() || left.unwrap().0 == 401);
        let (status, page) = browser.post(&web1, "/accounts/login/", &right).await;
        assert_eq!(status, 303, "{page}");
        let (status, page) = browser.get(&web1, "/accounts/logs/").await;
        assert!(status == 200 && page.contains("Logged in"), "{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_site_runs_on_cratedb_where_there_is_one() {
    match std::env::var("CRATEDB_URL") {
        Ok(url) => {
            let shared = Shared::start(Data::CrateDb(in_own_schema(&url)));
            tour(&shared).await;
            races(&shared).await;
        }
        Err(_) => println!("NOT RUN: the whole site on a real CrateDB. Set CRATEDB_URL to run it."),
    }
}

#[test]
fn missing_or_conflicting_settings_fail_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::write(&empty, "\n").unwrap();
    let empty = empty.to_str().unwrap();
    for (flags, words) in [
        (&["--sessions", "redis-cluster"][..], &["--redis-nodes", "redis-1:6379"][..]),
        (&["--sessions", "redis-cluster", "--redis-nodes", "redis-1"], &["--redis-nodes", "redis-1", "HOST:PORT"]),
        (
            &["--sessions", "redis-cluster", "--redis-nodes", "a:1", "--redis-password-file", empty],
            &["--redis-password-file", "the file is empty"],
        ),
        (
            &["--sessions", "redis-cluster", "--redis-nodes", "a:1", "--redis-password-file", "/no/such"],
            &["--redis-password-file", "/no/such", "cannot read"],
        ),
        (
            &["--sessions", "redis-cluster", "--redis-nodes", "a:1", "--redis-prefix", "{s}"],
            &["--redis-prefix", "{s}", "session:"],
        ),
        (
            &["--sessions", "redis-cluster", "--redis-nodes", "a:1", "--redis-timeout", "1s"],
            &["--redis-timeout", "1500ms"],
        ),
        (&["--data", "cratedb"], &["--data cratedb", "--database-url", "postgresql://"]),
        (&["--data", "postgres", "--database-url", "postgresql://a/b"], &["--database-url", "names no user"]),
        (&["--media", "ftp://x"], &["--media", "ftp://x", "s3://BUCKET"]),
        (&["--media", "bucket"], &["--media", "bucket", "s3://"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_app"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(folder.path().join("data"))
            .args(flags)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{flags:?}");
        assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
        assert!(!folder.path().join("data").exists(), "{flags:?}");
    }
}
