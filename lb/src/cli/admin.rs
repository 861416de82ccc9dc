//! The client for the admin API of a running balancer, described in `docs/admin-api.md`.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use http::Uri;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::{Method, Request, Response};
use ureq::{Agent, Body};

use super::ChangeArgs;

const TIMEOUT: Duration = Duration::from_secs(10);

/// The URL of an admin API, without final slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AdminUrl(String);

#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    url: AdminUrl,
    token: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum AdminError {
    /// It may be available again later.
    #[error(
        "cannot reach the admin API at {url}: {reason}. Is Evenkeel running, and is this its [admin] address? Name another with --admin or EVENKEEL_ADMIN"
    )]
    Unreachable { url: AdminUrl, reason: String },
    #[error("{0}")]
    Refused(String),
    #[error("the admin API wants its token: name the file with --token-file or EVENKEEL_TOKEN_FILE")]
    NoToken,
    /// In the API's words: the token is wrong, or does not permit this.
    #[error("{0}: name the file with another token with --token-file or EVENKEEL_TOKEN_FILE")]
    WrongToken(String),
    #[error(
        "the server at {url} is not an admin API ({reason}): name the [admin] address with --admin or EVENKEEL_ADMIN"
    )]
    NotAdmin { url: AdminUrl, reason: String },
}

pub(super) type Result<T> = std::result::Result<T, AdminError>;

/// The part of a response that all changes share.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChangeResponse {
    pub dry_run: bool,
    pub edits: Vec<Edit>,
    pub effects: Vec<String>,
    pub warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Edit {
    pub text: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Drift {
    pub file: String,
    pub edits: Vec<Edit>,
    /// Settings of the file that take effect only at a start, and differ from the running ones.
    #[serde(default)]
    pub awaiting_restart: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Changes {
    pub changes: Vec<Change>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Change {
    pub id: u64,
    pub at: String,
    pub by: String,
    pub from: Option<String>,
    pub edits: Vec<Edit>,
    pub reloaded: Option<Vec<String>>,
    pub undoes: Option<u64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Pools {
    pub version: u64,
    /// The number of settings in force that differ from the file.
    #[serde(default)]
    pub drift: usize,
    /// Settings of the file that take effect only at a start, and differ from the running ones.
    #[serde(default)]
    pub awaiting_restart: Vec<String>,
    #[serde(default)]
    pub certificates: Vec<Certificate>,
    pub pools: Vec<Pool>,
}

/// A certificate of a listener.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Certificate {
    pub listener: String,
    pub file: String,
    pub names: Vec<String>,
    pub days_left: Option<i64>,
    /// `due`, `urgent` or `expired`.
    pub renewal: Option<String>,
    pub problem: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Pool {
    pub name: String,
    pub algorithm: String,
    pub panic: bool,
    #[serde(default)]
    pub queued: u64,
    pub backends: Vec<Backend>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Backend {
    pub address: String,
    pub weight: u32,
    pub status: String,
    pub ejected_for_seconds: f64,
    #[serde(default)]
    pub ejection_prevented: bool,
    pub in_flight: u32,
    #[serde(default)]
    pub max_connections: Option<u32>,
    pub deadline_seconds: Option<f64>,
    pub grace_seconds: Option<f64>,
    pub requests: u64,
    pub failures: u64,
    pub latency_seconds: Option<f64>,
    pub last_probe: Option<Probe>,
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub resolution: Option<Resolution>,
}

/// One of the addresses of a backend.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Endpoint {
    pub address: Option<String>,
    pub status: String,
    pub ejected_for_seconds: f64,
    #[serde(default)]
    pub ejection_prevented: bool,
    pub in_flight: u32,
    pub latency_seconds: Option<f64>,
    pub last_probe: Option<Probe>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Resolution {
    /// Why the last lookup of the name failed.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Probe {
    pub ok: bool,
    pub seconds_ago: f64,
    pub duration_seconds: f64,
    pub error: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Algorithms {
    pub choices: Vec<String>,
    pub pools: Vec<PoolAlgorithm>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PoolAlgorithm {
    pub pool: String,
    pub algorithm: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Switches {
    pub pools: Vec<Switch>,
    #[serde(flatten)]
    pub response: ChangeResponse,
}

/// A backend that was added or changed.
#[derive(Debug, Deserialize)]
pub(super) struct Changed {
    /// `None` for a dry run that would add it.
    #[serde(flatten)]
    pub backend: Option<Backend>,
    /// How many exchanges were killed at the deadline, if there was one.
    pub killed: Option<usize>,
    /// False if the change was undone before the deadline.
    pub finished: Option<bool>,
    #[serde(flatten)]
    pub response: ChangeResponse,
}

/// The result of a kill.
#[derive(Debug, Deserialize)]
pub(super) struct Killed {
    pub killed: usize,
    pub in_flight: usize,
    pub warnings: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Switch {
    pub pool: String,
    pub previous: String,
    pub current: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Removal {
    #[serde(default)]
    pub in_flight: usize,
    pub killed: Option<usize>,
    pub finished: Option<bool>,
    #[serde(flatten)]
    pub response: ChangeResponse,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reloaded {
    pub version: u64,
    #[serde(default)]
    pub changes: Vec<String>,
    pub warnings: Vec<String>,
}

impl Client {
    pub(super) fn new(url: AdminUrl, token_file: Option<&Path>) -> anyhow::Result<Self> {
        let token = token_file.map(super::read_token).transpose()?;
        Ok(Self { agent: agent(TIMEOUT), url, token })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None)
    }

    pub(super) fn pools(&self) -> Result<Pools> {
        self.call(Method::GET, "/admin/pools", None)
    }

    pub(super) fn algorithms(&self) -> Result<Algorithms> {
        self.call(Method::GET, "/admin/algorithm", None)
    }

    pub(super) fn switch_algorithm(&self, algorithm: &str, pool: Option<&str>, args: ChangeArgs) -> Result<Switches> {
        let mut wanted = json!({ "algorithm": algorithm });
        if let Some(pool) = pool {
            wanted["pool"] = pool.into();
        }
        self.change(Method::POST, "/admin/algorithm", Some(&wanted), args)
    }

    pub(super) fn add_backend(&self, pool: &str, backend: &Value, args: ChangeArgs) -> Result<Changed> {
        self.change(Method::POST, &format!("/admin/pools/{}/backends", encoded(pool)), Some(backend), args)
    }

    pub(super) fn change_backend(
        &self,
        pool: &str,
        address: &str,
        change: &Value,
        args: ChangeArgs,
    ) -> Result<Changed> {
        self.change(Method::PATCH, &backend_path(pool, address), Some(change), args)
    }

    pub(super) fn remove_backend(&self, pool: &str, address: &str, args: ChangeArgs) -> Result<Removal> {
        self.change(Method::DELETE, &backend_path(pool, address), None, args)
    }

    pub(super) fn kill(&self, pool: &str, address: &str, dry_run: bool) -> Result<Killed> {
        let args = ChangeArgs { dry_run, ..ChangeArgs::default() };
        self.change(Method::POST, &format!("{}/kill", backend_path(pool, address)), None, args)
    }

    pub(super) fn changes(&self) -> Result<Changes> {
        self.call(Method::GET, "/admin/changes", None)
    }

    pub(super) fn drift(&self) -> Result<Drift> {
        self.call(Method::GET, "/admin/drift", None)
    }

    pub(super) fn undo(&self, id: u64, args: ChangeArgs) -> Result<ChangeResponse> {
        self.change(Method::POST, &format!("/admin/changes/{id}/undo"), None, args)
    }

    pub(super) fn reset(&self, pool: Option<&str>, args: ChangeArgs) -> Result<ChangeResponse> {
        let wanted = pool.map(|pool| json!({ "pool": pool }));
        self.change(Method::POST, "/admin/reset", wanted.as_ref(), args)
    }

    pub(super) fn reload(&self, dry_run: bool) -> Result<Reloaded> {
        self.change(Method::POST, "/admin/reload", None, ChangeArgs { dry_run, ..ChangeArgs::default() })
    }

    /// The response of a balancer that is ready for traffic.
    pub(super) fn ready(&self) -> Result<String> {
        let (status, body) = self.exchange(&self.agent, Method::GET, "/readyz", None)?;
        let word = printable(body.trim());
        match status {
            200 => Ok(word),
            503 => Err(AdminError::Refused(format!("the balancer is not ready: {word}"))),
            _ => Err(self.refusal(status, &body)),
        }
    }

    fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        wanted: Option<&Value>,
        args: ChangeArgs,
    ) -> Result<T> {
        let options = [
            args.dry_run.then(|| "dry_run=true".to_owned()),
            args.force.then(|| "force=true".to_owned()),
            args.deadline.map(|deadline| format!("deadline={}ms", deadline.as_millis())),
        ];
        let options: Vec<_> = options.into_iter().flatten().collect();
        let query = if options.is_empty() { String::new() } else { format!("?{}", options.join("&")) };
        let path = format!("{path}{query}");
        match args.deadline {
            // The response comes at the latest when the deadline has passed.
            Some(deadline) => self.call_with(&agent(TIMEOUT + deadline), method, &path, wanted),
            None => self.call(method, &path, wanted),
        }
    }

    fn call<T: DeserializeOwned>(&self, method: Method, path: &str, wanted: Option<&Value>) -> Result<T> {
        self.call_with(&self.agent, method, path, wanted)
    }

    fn call_with<T: DeserializeOwned>(
        &self,
        agent: &Agent,
        method: Method,
        path: &str,
        wanted: Option<&Value>,
    ) -> Result<T> {
        let (status, body) = self.exchange(agent, method, path, wanted)?;
        if !(200..300).contains(&status) {
            return Err(self.refusal(status, &body));
        }
        let answer: Value = serde_json::from_str(&body).map_err(|e| self.not_admin(e.to_string()))?;
        match answer["persistence"].as_str() {
            Some("pending") => eprintln!("warning: in force, but the disk has not taken it yet: a restart may lose it"),
            Some("failed") => eprintln!("warning: in force, but the state file cannot be written: a restart loses it"),
            _ => {}
        }
        serde_json::from_value(answer).map_err(|e| self.not_admin(e.to_string()))
    }

    fn exchange(&self, agent: &Agent, method: Method, path: &str, wanted: Option<&Value>) -> Result<(u16, String)> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.url));
        if let Some(token) = &self.token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let response = match wanted {
            Some(wanted) => {
                let request = request.header("Content-Type", "application/json").body(wanted.to_string());
                request.map_err(ureq::Error::from).and_then(|request| agent.run(request))
            }
            None => request.body(()).map_err(ureq::Error::from).and_then(|request| agent.run(request)),
        };
        let mut response: Response<Body> = response.map_err(|e| self.unreachable(&e))?;
        let body = response.body_mut().read_to_string().map_err(|e| self.unreachable(&e))?;
        Ok((response.status().as_u16(), body))
    }

    fn unreachable(&self, error: &ureq::Error) -> AdminError {
        let reason = match error {
            ureq::Error::Io(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
            ureq::Error::Timeout(_) => format!("no answer within {} seconds", TIMEOUT.as_secs()),
            ureq::Error::HostNotFound => "there is no such host".to_owned(),
            ureq::Error::Protocol(e) => return self.not_admin(e.to_string()),
            e => e.to_string(),
        };
        AdminError::Unreachable { url: self.url.clone(), reason }
    }

    fn refusal(&self, status: u16, body: &str) -> AdminError {
        #[derive(Deserialize)]
        struct Problem {
            detail: String,
        }
        match (status, serde_json::from_str::<Problem>(body)) {
            (401, Ok(_)) if self.token.is_none() => AdminError::NoToken,
            (401 | 403, Ok(problem)) if self.token.is_some() => AdminError::WrongToken(printable(&problem.detail)),
            (_, Ok(problem)) => AdminError::Refused(with_options(&printable(&problem.detail))),
            (status, Err(_)) => self.not_admin(format!("status {status}")),
        }
    }

    fn not_admin(&self, reason: String) -> AdminError {
        AdminError::NotAdmin { url: self.url.clone(), reason }
    }
}

fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        // Proxies are not meant for this API.
        .proxy(None)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // A balancer that was restarted since the last call has closed the connection.
        .max_idle_connections(0)
        .build()
        .new_agent()
}

/// The API's text, with options in the syntax of the command line.
pub(super) fn with_options(message: &str) -> String {
    message.replace("?force=true", "--force")
}

/// The only pool with this backend.
pub(super) fn pool_with(pools: &[Pool], address: &str) -> Result<String> {
    let has = |pool: &&Pool| pool.backends.iter().any(|backend| backend.address == address);
    let having: Vec<_> = pools.iter().filter(has).map(|pool| pool.name.as_str()).collect();
    match having.as_slice() {
        [pool] => Ok((*pool).to_owned()),
        [] => {
            let known: Vec<_> = pools.iter().flat_map(|pool| &pool.backends).map(|b| b.address.as_str()).collect();
            Err(AdminError::Refused(format!("no pool has a backend {address}; the backends are {}", known.join(", "))))
        }
        several => Err(AdminError::Refused(format!(
            "the pools {} have a backend {address}: name one with --pool",
            several.join(", ")
        ))),
    }
}

/// The only pool, if none is named.
pub(super) fn only_pool(pools: &[Pool]) -> Result<String> {
    match pools {
        [pool] => Ok(pool.name.clone()),
        _ => {
            let names: Vec<_> = pools.iter().map(|pool| pool.name.as_str()).collect();
            Err(AdminError::Refused(format!("there are the pools {}: name one with --pool", names.join(", "))))
        }
    }
}

/// Text from elsewhere, without terminal control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn backend_path(pool: &str, address: &str) -> String {
    format!("/admin/pools/{}/backends/{}", encoded(pool), encoded(address))
}

/// One segment of a path (RFC 3986 §3.3).
fn encoded(segment: &str) -> String {
    let encode = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    segment.bytes().map(encode).collect()
}

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text.starts_with("https://") {
            return Err("the admin API speaks plain HTTP: write http://".to_owned());
        }
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let is_url = |uri: &Uri| uri.scheme_str() == Some("http") && uri.host().is_some() && uri.query().is_none();
        let uri = url.parse::<Uri>().ok().filter(is_url);
        uri.ok_or("write it as http://HOST:PORT, such as http://127.0.0.1:8889")?;
        Ok(Self(url.trim_end_matches('/').to_owned()))
    }
}

impl fmt::Display for AdminUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
