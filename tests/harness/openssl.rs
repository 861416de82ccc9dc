//! The system's `openssl`: certificates as operators get them, and an independent TLS client.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::deadline::within;
use crate::process::installed;

/// A certificate authority.
pub struct Authority {
    directory: TempDir,
}

/// What kind of key a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ecdsa,
    Rsa,
}

/// The combined output of a run.
#[derive(Debug)]
pub struct Output {
    pub is_success: bool,
    pub text: String,
}

impl Authority {
    pub async fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let authority = Self { directory };
        let mut arguments = vec!["req", "-x509", "-nodes", "-subj", "/CN=Authority", "-days", "30"];
        arguments.extend(Kind::Ecdsa.arguments());
        let (certificate, key) = (authority.path("ca.pem"), authority.path("ca.key"));
        arguments.extend(["-out", text(&certificate), "-keyout", text(&key)]);
        openssl(&arguments).await.success();
        authority
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Creates a certificate and its key for these names, valid for `days`. The first name is the common name.
    pub async fn issue(&self, certificate: &Path, key: &Path, kind: Kind, names: &[&str], days: u32) {
        let subject = format!("/CN={}", names[0]);
        self.issue_as(certificate, key, kind, &subject, names, days).await;
    }

    /// As [`Self::issue`], with any subject.
    pub async fn issue_as(&self, certificate: &Path, key: &Path, kind: Kind, subject: &str, names: &[&str], days: u32) {
        let names: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let names = format!("subjectAltName={}", names.join(","));
        let (ca, ca_key, days) = (self.path("ca.pem"), self.path("ca.key"), days.to_string());
        let mut arguments =
            vec!["req", "-x509", "-nodes", "-utf8", "-subj", subject, "-addext", &names, "-days", &days];
        arguments.extend(["-addext", "basicConstraints=CA:FALSE", "-CA", text(&ca), "-CAkey", text(&ca_key)]);
        arguments.extend(kind.arguments());
        // Moved into place when complete, as tools that renew certificates do.
        let (new, new_key) = (with_more(certificate, ".new"), with_more(key, ".new"));
        arguments.extend(["-out", text(&new), "-keyout", text(&new_key)]);
        openssl(&arguments).await.success();
        std::fs::rename(&new_key, key).expect("our files");
        std::fs::rename(&new, certificate).expect("our files");
    }
}

impl Kind {
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Ecdsa => &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"],
            Self::Rsa => &["-newkey", "rsa:2048"],
        }
    }
}

impl Output {
    pub fn success(self) -> String {
        assert!(self.is_success, "{}", self.text);
        self.text
    }

    /// The text after `mark` in its line.
    pub fn after(&self, mark: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.trim_start().strip_prefix(mark)).map(str::trim)
    }

    /// The common name of the server's certificate: `CN = name` before OpenSSL 3.2, `CN=name` since.
    pub fn server(&self) -> Option<&str> {
        let (_, name) = self.after("subject=")?.split_once("CN")?;
        name.trim_start().strip_prefix('=').map(str::trim_start)
    }
}

/// Runs `openssl` to its end.
pub async fn openssl(arguments: &[&str]) -> Output {
    openssl_with(arguments, "").await
}

/// As [`openssl`], with this on its standard input.
pub async fn openssl_with(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(installed("openssl", "openssl"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().expect("a program that starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may have ended, or need no input.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = within("the end of openssl", child.wait_with_output()).await.expect("a child");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Output { is_success: output.status.success(), text }
}

/// One handshake of `openssl s_client`. `name`: the server name to request; empty: none.
pub async fn handshake(address: SocketAddr, name: &str, arguments: &[&str]) -> Output {
    let address = address.to_string();
    let mut all = vec!["s_client", "-connect", &address];
    match name {
        "" => all.push("-noservername"),
        name => all.extend(["-servername", name]),
    }
    all.extend(arguments);
    openssl(&all).await
}

fn with_more(path: &Path, more: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(more);
    name.into()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
