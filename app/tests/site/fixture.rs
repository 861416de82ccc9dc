//! A site of one or more instances on one folder, and a browser that keeps its cookies.

use std::io::Cursor;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use app::config::{Instance, Settings};
use app::media::Limits;
use app::metrics::Metrics;
use app::passwords::Cost;
use app::server::{self, Stop};
use app::{App, Stores, tls};
use image::{ImageFormat, RgbImage};
use reqwest::multipart::{Form, Part};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Site {
    folder: TempDir,
    pub settings: Settings,
}

impl Site {
    pub fn new() -> Self {
        let settings = Settings {
            password_cost: Cost::TRIVIAL,
            pictures: Limits { bytes: 50_000, pixels: 100_000 },
            ..Settings::default()
        };
        Self { folder: tempfile::tempdir().unwrap(), settings }
    }

    /// Of a file of the shared folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn stores(&self) -> Stores {
        Stores::embedded(self.folder.path()).unwrap()
    }

    /// One more instance on the shared folder.
    pub async fn start(&self, name: &str) -> Running {
        self.start_on(name, self.stores()).await
    }

    pub async fn start_on(&self, name: &str, stores: Stores) -> Running {
        let metrics = Arc::new(Metrics::new().unwrap());
        let app = App::new(Instance::new(name.parse().unwrap()), self.settings.clone(), stores, metrics).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(Stop::No);
        let task = tokio::spawn(server::run(Arc::clone(&app), listener, stopped));
        Running { address, app, stop, task }
    }
}

pub struct Running {
    pub address: SocketAddr,
    pub app: Arc<App>,
    stop: watch::Sender<Stop>,
    task: JoinHandle<()>,
}

impl Running {
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Asks it to stop at once; what comes back ends when it has.
    pub fn stop(self) -> JoinHandle<()> {
        self.stop.send(Stop::Now).unwrap();
        self.task
    }

    /// Asks it to announce that it stops. It does so at once when what comes back is told to.
    pub fn announce(self) -> (watch::Sender<Stop>, JoinHandle<()>) {
        self.stop.send(Stop::Announced).unwrap();
        (self.stop, self.task)
    }
}

/// Keeps cookies, which count for every instance, and follows no redirect unasked.
#[derive(Clone)]
pub struct Browser(Client);

impl Browser {
    pub fn new() -> Self {
        tls::choose_provider();
        Self(Client::builder().cookie_store(true).redirect(Policy::none()).no_proxy().build().unwrap())
    }

    pub fn request(&self, instance: &Running, path: &str) -> RequestBuilder {
        self.0.get(instance.url(path))
    }

    pub async fn get(&self, instance: &Running, path: &str) -> Answer {
        Answer::of(self.request(instance, path).send().await.unwrap()).await
    }

    /// Sends a form as a page of this site would.
    pub async fn post(&self, instance: &Running, path: &str, fields: &[(&str, &str)]) -> Answer {
        let request = self.0.post(instance.url(path)).header("origin", instance.url("")).form(fields);
        Answer::of(request.send().await.unwrap()).await
    }

    pub fn post_raw(&self, instance: &Running, path: &str) -> RequestBuilder {
        self.0.post(instance.url(path))
    }

    pub async fn upload(&self, instance: &Running, fields: &[(&str, &str)], picture: Option<Vec<u8>>) -> Answer {
        let mut form = Form::new();
        for (name, value) in fields {
            form = form.text((*name).to_owned(), (*value).to_owned());
        }
        // A browser without a chosen file sends an empty one.
        let part = Part::bytes(picture.unwrap_or_default()).file_name("holiday.png").mime_str("image/png").unwrap();
        let form = form.part("picture", part);
        let request = self.0.post(instance.url("/posts/")).header("origin", instance.url("")).multipart(form);
        Answer::of(request.send().await.unwrap()).await
    }

    pub async fn sign_up(&self, instance: &Running, name: &str) {
        let answer = self.post(instance, "/accounts/signup/", &[("name", name), ("password", PASSWORD)]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.body);
    }

    pub async fn log_in(&self, instance: &Running, name: &str, password: &str) -> Answer {
        self.post(instance, "/accounts/login/", &[("name", name), ("password", password)]).await
    }
}

/// Waits for a condition, without which the test fails.
pub async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "{what} did not come about");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub const PASSWORD: &str = "correct horse battery";

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Answer {
    pub async fn of(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, body: response.text().await.unwrap() }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Checks the status, and that the page says all of `words`.
    #[track_caller]
    pub fn says(&self, status: u16, words: &[&str]) {
        assert_eq!(self.status, status, "{}", self.body);
        for word in words {
            assert!(self.body.contains(word), "{word:?} is missing in: {}", self.body);
        }
    }

    /// The value of the hidden field `name`.
    pub fn hidden(&self, name: &str) -> Option<&str> {
        let start = format!("name=\"{name}\" value=\"");
        let from = self.body.find(&start)? + start.len();
        self.body[from..].split('"').next()
    }

    /// The address of the first picture among the posts.
    pub fn picture(&self) -> Option<&str> {
        let from = self.body.find("src=\"/media/")? + 5;
        self.body[from..].split('"').next()
    }
}

pub fn png(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 99]))
        .write_to(&mut bytes, ImageFormat::Png)
        .unwrap();
    bytes.into_inner()
}
