//! A person with a browser: headless Chromium, driven through WebDriver (chromedriver), of which this speaks just
//! what the tests need. Both must be installed; a machine without them fails the test and says what to install.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::deadline::{found_eventually, within};
use crate::process::{Process, installed};
use crate::wire::{Request, Wire};

/// The name under which WebDriver hands out elements.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// For a machine without a display, a sandbox or a network.
const FLAGS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

pub struct Browser {
    driver: SocketAddr,
    session: String,
    _process: Process,
    _directory: TempDir,
}

impl Browser {
    pub async fn start() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let mut command = Command::new(installed("chromedriver", "chromium-driver"));
        command.arg("--port=0");
        let mut process = Process::start(command, &directory.path().join("chromedriver.log"));
        let port = |line: &str| line.split_once("started successfully on port ")?.1.trim_end_matches('.').parse().ok();
        let port: u16 = process.line("chromedriver listens", port).await;
        let driver = SocketAddr::from(([127, 0, 0, 1], port));
        let profile = format!("--user-data-dir={}", directory.path().join("profile").display());
        let arguments: Vec<_> = FLAGS.into_iter().chain([profile.as_str()]).collect();
        let options = json!({ "binary": installed("chromium", "chromium"), "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        let session = call(driver, "POST", "/session", Some(wanted)).await;
        let session = session["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {session}")).to_owned();
        Self { driver, session, _process: process, _directory: directory }
    }

    pub async fn open(&self, address: SocketAddr, path: &str) {
        self.command("POST", "/url", Some(json!({ "url": format!("http://{address}{path}") }))).await;
    }

    pub async fn url(&self) -> String {
        self.command("GET", "/url", None).await.as_str().expect("an address").to_owned()
    }

    /// Types into the field with this name. A file is chosen by typing its full name.
    pub async fn type_into(&self, name: &str, text: &str) {
        let element = self.find(&format!("[name=\"{name}\"]")).await;
        self.command("POST", &format!("/element/{element}/value"), Some(json!({ "text": text }))).await;
    }

    pub async fn choose_file(&self, name: &str, file: &Path) {
        self.type_into(name, file.to_str().expect("a name in UTF-8")).await;
    }

    pub async fn click(&self, selector: &str) {
        let element = self.find(selector).await;
        self.command("POST", &format!("/element/{element}/click"), Some(json!({}))).await;
    }

    /// The visible text of the first matching element, once it exists.
    pub async fn text(&self, selector: &str) -> String {
        // In one step, because the page may be replaced between two.
        let script = format!("const e = document.querySelector({}); return e && e.innerText", json!(selector));
        let text = async || self.run(&script).await.as_str().map(str::to_owned);
        found_eventually(&format!("{selector} is on the page"), text).await
    }

    /// Whether the page has such an element now.
    pub async fn has(&self, selector: &str) -> bool {
        self.found(selector).await.is_some()
    }

    /// What a script returns.
    pub async fn run(&self, script: &str) -> Value {
        self.command("POST", "/execute/sync", Some(json!({ "script": script, "args": [] }))).await
    }

    /// A picture of the window, as PNG.
    pub async fn screenshot(&self) -> Vec<u8> {
        let picture = self.command("GET", "/screenshot", None).await;
        let picture = picture.as_str().expect("a picture in base64");
        base64::engine::general_purpose::STANDARD.decode(picture).expect("base64")
    }

    /// Closes the window, and with it Chromium.
    pub async fn close(self) {
        call(self.driver, "DELETE", &format!("/session/{}", self.session), None).await;
    }

    async fn find(&self, selector: &str) -> String {
        found_eventually(&format!("{selector} is on the page"), async || self.found(selector).await).await
    }

    async fn found(&self, selector: &str) -> Option<String> {
        let query = json!({ "using": "css selector", "value": selector });
        let elements = self.command("POST", "/elements", Some(query)).await;
        elements[0][ELEMENT].as_str().map(str::to_owned)
    }

    async fn command(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        call(self.driver, method, &format!("/session/{}{path}", self.session), body).await
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A session that was not closed would leave Chromium behind when its driver is killed. The runtime of a
        // failing test is still there, but nobody waits on it any more: so this asks without waiting for an answer.
        let request = format!("DELETE /session/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", self.session);
        if let Ok(mut stream) = std::net::TcpStream::connect(self.driver) {
            use std::io::{Read, Write};
            let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(5)));
            let _ = stream.write_all(request.as_bytes());
            let _ = stream.read(&mut [0; 64]);
        }
    }
}

async fn call(driver: SocketAddr, method: &str, path: &str, body: Option<Value>) -> Value {
    let mut request = Request::new(method, path).with("Host", &driver.to_string()).with("Connection", "close");
    if let Some(body) = &body {
        request = request.json(body);
    }
    let mut wire = Wire::connect(driver).await;
    let reply = within("an answer of the browser", wire.exchange(&request)).await;
    assert_eq!(reply.status, 200, "{method} {path} {body:?}: {}", reply.text());
    reply.json()["value"].take()
}
