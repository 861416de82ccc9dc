//! TLS towards clients in the configuration: certificates, protocols, client certificates, session tickets.

pub(crate) mod material;
pub(crate) mod pem;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::route::HostPattern;
use super::seconds;

/// TLS of a listener. Its files were readable and consistent when the configuration was checked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TlsConfig {
    /// At least one.
    #[serde(flatten)]
    pub certificates: Certificates,
    /// The certificate for clients without SNI, and for unknown names; `None`: the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<PathBuf>,
    /// What clients get that ask for another name.
    pub unknown_names: UnknownNames,
    /// Which versions of TLS.
    pub profile: Profile,
    /// In order of preference.
    pub alpn: Vec<Protocol>,
    /// `None`: clients are not asked for any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificates: Option<ClientCertificates>,
    /// Secrets that the keys of session tickets are derived from; `None`: random keys of this process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticket_file: Option<PathBuf>,
    /// How long a handshake may take.
    #[serde(serialize_with = "seconds")]
    pub handshake_timeout: Duration,
    /// How often files are checked for changes; zero: only when the configuration is read.
    #[serde(serialize_with = "seconds")]
    pub watch_interval: Duration,
    /// If a site of the listener pins a certificate: the hosts of its sites, each with the certificate that it pins.
    #[serde(skip)]
    pub pins: Vec<(HostPattern, Option<PathBuf>)>,
    /// The hosts of routes and of the listener's sites.
    #[serde(skip)]
    pub hosts: Vec<HostPattern>,
}

/// Where a listener's certificates are, as configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Certificates {
    /// It comes first.
    #[serde(flatten)]
    pub one: Option<Pair>,
    /// The others.
    #[serde(rename = "certificates", skip_serializing_if = "Option::is_none")]
    pub others: Option<AdditionalCertificates>,
}

/// Certificates beside the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AdditionalCertificates {
    /// Each was written.
    Listed(Vec<Pair>),
    /// All pairs in a folder at the time when it is read.
    Folder(PathBuf),
}

/// A certificate chain, leaf first, and the leaf's private key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Pair {
    /// PEM file, the leaf first.
    pub certificate: PathBuf,
    /// May be the same file.
    pub key: PathBuf,
    /// The file with the password of an encrypted key; `None`: the key is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
}

/// What happens when a client requests a server name (RFC 6066 §3) that no certificate matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownNames {
    /// It gets the default certificate.
    Default,
    /// It gets the alert `unrecognized_name`.
    Refuse,
}

/// Protocol versions by Mozilla's recommendations. All cipher suites are AEAD with forward secrecy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// TLS 1.2 and 1.3.
    Intermediate,
    /// TLS 1.3.
    Modern,
}

/// A protocol that is offered to clients (RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Protocol {
    /// HTTP/2.
    #[serde(rename = "h2")]
    Http2,
    /// HTTP/1.1.
    #[serde(rename = "http/1.1")]
    Http11,
}

/// Which certificates clients present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClientCertificates {
    /// Whether a client has to show one.
    pub mode: ClientMode,
    /// PEM file with the certificates of the CAs that issue them.
    pub ca: PathBuf,
}

/// Whether clients have to show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientMode {
    /// A client may present none. A presented one must be valid.
    Optional,
    /// A handshake without one fails.
    Required,
}

impl TlsConfig {
    /// One certificate, with defaults for the rest.
    #[cfg(test)]
    pub(crate) fn of_pair(certificate: PathBuf, key: PathBuf) -> Self {
        Self {
            certificates: Certificates { one: Some(Pair { certificate, key, password_file: None }), others: None },
            default: None,
            unknown_names: UnknownNames::Default,
            profile: Profile::Intermediate,
            alpn: vec![Protocol::Http2, Protocol::Http11],
            client_certificates: None,
            ticket_file: None,
            handshake_timeout: Duration::from_secs(10),
            watch_interval: Duration::from_secs(5),
            pins: Vec::new(),
            hosts: Vec::new(),
        }
    }
}

impl Protocol {
    /// Its name in handshakes.
    pub fn name(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http11 => b"http/1.1",
        }
    }
}

impl Certificates {
    /// The existing pairs. Those of a folder are ordered by name.
    pub fn pairs(&self) -> io::Result<Vec<Pair>> {
        let others = match &self.others {
            Some(AdditionalCertificates::Listed(pairs)) => pairs.clone(),
            Some(AdditionalCertificates::Folder(folder)) => in_folder(folder)?,
            None => Vec::new(),
        };
        Ok(self.one.iter().cloned().chain(others).collect())
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.others {
            Some(AdditionalCertificates::Folder(folder)) => Some(folder),
            _ => None,
        }
    }
}

impl Pair {
    /// The pair of a certificate: its key is in `NAME.key` beside it, or else in the same file, and a password in
    /// `NAME.pass`.
    pub fn beside(certificate: PathBuf) -> Self {
        let (key, password) = (certificate.with_extension("key"), certificate.with_extension("pass"));
        Self {
            key: if key.exists() { key } else { certificate.clone() },
            password_file: password.exists().then_some(password),
            certificate,
        }
    }

    /// The files of the pair.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let key = (self.key != self.certificate).then_some(self.key.as_path());
        [Some(self.certificate.as_path()), key, self.password_file.as_deref()].into_iter().flatten()
    }
}

/// Names of certificate and key where each pair has its own folder: Certbot's, and those of Kubernetes.
const NAMES_IN_FOLDERS: [(&str, &str); 2] = [("fullchain.pem", "privkey.pem"), ("tls.crt", "tls.key")];

fn in_folder(folder: &Path) -> io::Result<Vec<Pair>> {
    // One file of a pair, or a dangling link, does not count as no pair: reading it reports what is missing.
    let is_there = |path: &Path| match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|_| true).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display()))),
    };
    let pair_in = |folder: &Path| {
        for (certificate, key) in NAMES_IN_FOLDERS {
            let (certificate, key) = (folder.join(certificate), folder.join(key));
            if is_there(&certificate)? || is_there(&key)? {
                return Ok(Some(Pair { certificate, key, password_file: None }));
            }
        }
        Ok::<_, io::Error>(None)
    };
    let mut paths = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let own = pair_in(folder)?;
    let is_visible = |path: &PathBuf| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let has_ending = |path: &Path| path.extension().is_some_and(|ending| ending == "pem" || ending == "crt");
    let mut pairs = Vec::new();
    for path in paths.into_iter().filter(is_visible) {
        if path.is_dir() {
            pairs.extend(pair_in(&path)?);
        // Ignores other files of such a pair.
        } else if own.is_none() && has_ending(&path) {
            pairs.push(Pair::beside(path));
        }
    }
    pairs.extend(own);
    Ok(pairs)
}

#[cfg(test)]
mod tests;
