//! The content of a listener's TLS files: certificates with their keys, and the issuers of client certificates.

use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, RootCertStore};
use sha2::{Digest, Sha256};

use super::pem::{self, Key, Pem};
use super::{Certificates, Pair, TlsConfig};
use crate::config::Secret;
use crate::config::certificate::{self, Certificate};

/// Shorter secrets can be guessed.
const MIN_TICKET_SECRET_BYTES: usize = 32;
const MAX_TICKET_SECRETS: usize = 8;

/// All that a listener's TLS is built from.
#[derive(Debug, Clone)]
pub(crate) struct Material {
    /// At least one; see [`Certificates::pairs`] for their order.
    pub certificates: Vec<Arc<LoadedCertificate>>,
    /// `None`: clients are not asked for certificates.
    pub issuers: Option<Arc<Issuers>>,
    /// `None`: ticket keys are random and not shared.
    pub ticket_secrets: Option<Arc<[Secret]>>,
}

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct LoadedCertificate {
    pub pair: Pair,
    pub certified: Arc<CertifiedKey>,
    /// The parsed leaf certificate.
    pub leaf: Certificate,
    /// Of the content of the files.
    pub digest: [u8; 32],
}

/// The CAs that issue client certificates.
#[derive(Debug)]
pub(crate) struct Issuers {
    pub roots: Arc<RootCertStore>,
    /// Of the certificates, independent of their order and of other text in the file.
    pub digest: [u8; 32],
}

/// A problem with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFileError {
    pub at: TlsFileSetting,
    /// Names the file and the fix.
    pub message: String,
}

/// The setting that names the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TlsFileSetting {
    /// All certificates.
    Certificates,
    /// The pair with this index.
    Certificate(usize),
    Key(usize),
    Password(usize),
    Default,
    Issuers,
    Tickets,
}

/// Why a pair is not loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PairError {
    Certificate(String),
    Key(String),
    Password(String),
    /// The file contains only keys. In a folder it is part of a pair.
    KeyAlone,
}

impl Material {
    /// Reads all files that `config` names. The error lists all problems.
    pub(crate) fn load(config: &TlsConfig) -> Result<Self, Vec<TlsFileError>> {
        let mut faults = Vec::new();
        let certificates = load_all(&config.certificates, &mut faults);
        let has = |path: &Path| certificates.iter().any(|loaded| loaded.pair.certificate == path);
        if let Some(default) = config.default.as_deref().filter(|path| faults.is_empty() && !has(path)) {
            faults.push(TlsFileError { at: TlsFileSetting::Default, message: not_among(default, &certificates) });
        }
        let issuers = config.client_certificates.as_ref().map(|clients| Issuers::load(&clients.ca)).transpose();
        let issuers = issuers.unwrap_or_else(|message| {
            faults.push(TlsFileError { at: TlsFileSetting::Issuers, message });
            None
        });
        let ticket_secrets = config.ticket_file.as_deref().map(ticket_secrets).transpose().unwrap_or_else(|message| {
            faults.push(TlsFileError { at: TlsFileSetting::Tickets, message });
            None
        });
        match faults.is_empty() {
            true => Ok(Self { certificates, issuers: issuers.map(Arc::new), ticket_secrets }),
            false => Err(faults),
        }
    }
}

/// The secrets in a file, one per line, at least one. Lines that begin with `#` are comments.
pub(crate) fn ticket_secrets(path: &Path) -> Result<Arc<[Secret]>, String> {
    let content = pem::content(path)?;
    let lines = content.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii);
    let mut secrets = Vec::new();
    for (line, secret) in (1..).zip(lines).filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#")) {
        if secret.len() < MIN_TICKET_SECRET_BYTES {
            return Err(format!(
                "line {line} of {} has {} characters: a secret has at least {MIN_TICKET_SECRET_BYTES}, made for example with \"openssl rand -hex 32\"",
                path.display(),
                secret.len()
            ));
        }
        secrets.extend(Secret::new(secret));
    }
    match secrets.len() {
        0 => {
            Err(format!("{} has no secret: write one, made for example with \"openssl rand -hex 32\"", path.display()))
        }
        1..=MAX_TICKET_SECRETS => Ok(secrets.into()),
        _ => Err(format!("{} has more than {MAX_TICKET_SECRETS} secrets: remove old ones", path.display())),
    }
}

/// A message that `path` is none of these certificates.
pub(crate) fn not_among(path: &Path, certificates: &[Arc<LoadedCertificate>]) -> String {
    let there: Vec<_> = certificates.iter().map(|loaded| loaded.pair.certificate.display().to_string()).collect();
    format!("{} is not one of the listener's certificates, which are {}", path.display(), there.join(", "))
}

fn load_all(certificates: &Certificates, faults: &mut Vec<TlsFileError>) -> Vec<Arc<LoadedCertificate>> {
    let mut loaded = Vec::new();
    let pairs = match certificates.pairs() {
        Ok(pairs) => pairs,
        Err(e) => {
            let folder = certificates.folder().unwrap_or(Path::new("")).display();
            let message = format!("{folder} cannot be read as a folder: {e}");
            faults.push(TlsFileError { at: TlsFileSetting::Certificates, message });
            return loaded;
        }
    };
    let is_folder = certificates.folder().is_some();
    for (index, pair) in pairs.into_iter().enumerate() {
        let (at, message) = match LoadedCertificate::load(pair.clone()) {
            Ok(one) => {
                loaded.push(Arc::new(one));
                continue;
            }
            Err(PairError::KeyAlone) if is_folder => continue,
            Err(unusable) => match unusable {
                PairError::Certificate(message) => (TlsFileSetting::Certificate(index), message),
                PairError::Key(message) => (TlsFileSetting::Key(index), message),
                PairError::Password(message) => (TlsFileSetting::Password(index), message),
                PairError::KeyAlone => (
                    TlsFileSetting::Certificate(index),
                    format!("{} has a key and no certificate", pair.certificate.display()),
                ),
            },
        };
        faults.push(TlsFileError { at, message });
    }
    if loaded.is_empty() && faults.is_empty() {
        let message = match certificates.folder() {
            Some(folder) => {
                format!("{} has no certificate: put NAME.pem and NAME.key there", folder.display())
            }
            None => "there is no certificate: name at least one".to_owned(),
        };
        faults.push(TlsFileError { at: TlsFileSetting::Certificates, message });
    }
    loaded
}

impl LoadedCertificate {
    /// Reads a pair, and checks that its parts match.
    pub(crate) fn load(pair: Pair) -> Result<Self, PairError> {
        let mut digest = Sha256::new();
        let mut content = |path: &Path| {
            let content = pem::content(path)?;
            digest.update(Sha256::digest(&content));
            Ok::<_, String>(content)
        };
        let certificate = content(&pair.certificate).map_err(PairError::Certificate)?;
        let mut found = pem::read(&certificate, &pair.certificate).map_err(PairError::Certificate)?;
        let shown = pair.certificate.display();
        let is_same_file = pair.key == pair.certificate;
        if found.certificates.is_empty() && !(is_same_file && matches!(found.key, Some(Key::Traditional))) {
            return Err(match found.key {
                Some(_) => PairError::KeyAlone,
                None => PairError::Certificate(format!(
                    "{shown} has no certificate: it must be a PEM file, the leaf certificate first"
                )),
            });
        }
        let key = match is_same_file {
            true => found.key.take(),
            false => {
                let key = content(&pair.key).map_err(PairError::Key)?;
                pem::read(&key, &pair.key).map_err(PairError::Key)?.key
            }
        };
        let key = open(key, &pair, &mut content)?;
        let Pem { certificates, .. } = found;
        let mut chain = certificates.iter().map(|der| certificate::parse(der));
        let broken = || PairError::Certificate(format!("{shown} holds something that is not an X.509 certificate"));
        let leaf = chain.next().flatten().ok_or_else(broken)?;
        if chain.any(|certificate| certificate.is_none()) {
            return Err(broken());
        }
        let key_file = pair.key.display();
        let key = ring::default_provider().key_provider.load_private_key(key).map_err(|_| {
            PairError::Key(format!(
                "the key in {key_file} is of no kind that is used here: make one of ECDSA (P-256, P-384), Ed25519 or RSA (2048 to 4096 bits)"
            ))
        })?;
        let certified = CertifiedKey::new(certificates, key);
        match certified.keys_match() {
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) if is_same_file => {
                let message = format!(
                    "the key in {shown} does not belong to the first certificate there: put the leaf certificate first"
                );
                return Err(PairError::Key(message));
            }
            Err(_) => {
                let message = format!(
                    "the key in {key_file} does not belong to the first certificate in {shown}: name the key that it was made for, and put the leaf certificate first"
                );
                return Err(PairError::Key(message));
            }
        }
        Ok(Self { pair, certified: Arc::new(certified), leaf, digest: digest.finalize().into() })
    }

    /// Seconds since 1970.
    pub(crate) fn not_after(&self) -> i64 {
        self.leaf.not_after
    }

    /// Whether it is valid now.
    pub(crate) fn is_valid(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
        (self.leaf.not_before..=self.leaf.not_after).contains(&now)
    }
}

fn open(
    key: Option<Key>,
    pair: &Pair,
    content: &mut impl FnMut(&Path) -> Result<Vec<u8>, String>,
) -> Result<PrivateKeyDer<'static>, PairError> {
    let file = pair.key.display();
    match (key, &pair.password_file) {
        (None, _) if pair.key == pair.certificate => {
            let beside = pair.certificate.with_extension("key");
            Err(PairError::Key(format!(
                "there is no private key for {file}: put it into {} or into the same file",
                beside.display()
            )))
        }
        (None, _) => Err(PairError::Key(format!("{file} has no private key: it must be a PEM file with one"))),
        (Some(Key::Plain(key)), _) => Ok(key),
        (Some(Key::Traditional), _) => Err(PairError::Key(format!(
            "the key in {file} is encrypted in OpenSSL's old way: convert it by \"openssl pkcs8 -topk8 -v2 aes-256-cbc -in {file} -out NEW\""
        ))),
        (Some(Key::Encrypted(_)), None) => Err(PairError::Password(format!(
            "the key in {file} is encrypted: write password_file, a file with its password"
        ))),
        (Some(Key::Encrypted(der)), Some(password_file)) => {
            let password = content(password_file).map_err(PairError::Password)?;
            let password = password.strip_suffix(b"\n").unwrap_or(&password);
            let password = password.strip_suffix(b"\r").unwrap_or(password);
            pem::decrypt(&der, password).ok_or_else(|| {
                PairError::Password(format!(
                    "the password in {} does not open the key in {file}, or the key is encrypted in a way that is not known here: \"openssl pkey -in {file} -noout\" asks for the password",
                    password_file.display()
                ))
            })
        }
    }
}

impl Issuers {
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let content = pem::content(path)?;
        let found = pem::read(&content, path)?;
        if found.certificates.is_empty() {
            return Err(format!(
                "{} has no certificate: it must be a PEM file with those of the issuers",
                path.display()
            ));
        }
        let mut digests: Vec<_> = found.certificates.iter().map(Sha256::digest).collect();
        digests.sort_unstable();
        digests.dedup();
        let mut roots = RootCertStore::empty();
        for certificate in found.certificates {
            roots
                .add(certificate)
                .map_err(|e| format!("{} has a certificate that cannot issue others: {e}", path.display()))?;
        }
        Ok(Self { roots: Arc::new(roots), digest: Sha256::digest(digests.concat()).into() })
    }
}

/// In one line, for a log.
impl std::fmt::Display for PairError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Certificate(message) | Self::Key(message) | Self::Password(message) => f.write_str(message),
            Self::KeyAlone => f.write_str("a file has a key and no certificate"),
        }
    }
}
