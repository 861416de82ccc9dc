//! Certificate files that change while they are in use. A changed pair is loaded once it is complete, and only if every
//! served name keeps a valid certificate. Until then the current one stays in use, and the problem is logged once.
//! Changes are detected by file metadata, following links: tools that renew certificates write new files and move them
//! into place, or replace a link (Certbot, Kubernetes).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use super::ServerTls;
use crate::config::certificate;
use crate::config::tls::material::{self, Issuers, LoadedCertificate, Material, PairError};
use crate::config::tls::{Pair, TlsConfig};
use crate::site::hosts::HostTable;

/// The stamp of each file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Stamps(BTreeMap<PathBuf, Option<Stamp>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// The result of checking the files.
#[derive(Debug)]
pub(crate) struct Renewed {
    pub tls: Arc<ServerTls>,
    /// Certificates that are new, or have other content.
    pub taken_up: Vec<Arc<LoadedCertificate>>,
    /// Files that are gone.
    pub removed: Vec<PathBuf>,
    /// Problems that are new since the last check.
    pub problems: Vec<String>,
}

/// Problems with files, by path; those of a pair by the path of its certificate.
pub(crate) type Problems = BTreeMap<PathBuf, String>;

impl Stamps {
    /// The stamps of all files that `wanted` names, and of the folder.
    pub(crate) fn of(wanted: &TlsConfig) -> Self {
        let pairs = wanted.certificates.pairs().unwrap_or_default();
        let clients = wanted.client_certificates.as_ref().map(|clients| clients.ca.as_path());
        let others = [wanted.certificates.folder(), clients, wanted.ticket_file.as_deref()];
        let paths = pairs.iter().flat_map(Pair::files).chain(others.into_iter().flatten());
        Self(paths.map(|path| (path.to_owned(), Stamp::of(path))).collect())
    }

    /// Whether the files of this pair are unchanged.
    fn hold_for(&self, pair: &Pair) -> bool {
        pair.files().all(|file| self.0.get(file).is_some_and(|stamp| *stamp == Stamp::of(file)))
    }

    /// Makes the next check read the pair again in any case.
    fn forget(&mut self, pair: &Pair) {
        for file in pair.files() {
            self.0.remove(file);
        }
    }

    fn is_same(&self, before: &Self, path: &Path) -> bool {
        self.0.get(path) == before.0.get(path)
    }
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

impl ServerTls {
    /// Checks the files again, and loads those that have changed and are valid. `None`: nothing has changed.
    pub(crate) fn renew(self: &Arc<Self>, wanted: &TlsConfig) -> Option<Renewed> {
        let mut stamps = Stamps::of(wanted);
        let (before, known) = {
            let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            if watched.stamps == stamps {
                return None;
            }
            (watched.stamps.clone(), watched.problems.clone())
        };
        let mut problems = Problems::new();
        let certificates = self.renewed(wanted, &mut stamps, &before, &known, &mut problems);
        let issuers = wanted.client_certificates.as_ref().and_then(|clients| {
            let loaded = Issuers::load(&clients.ca).map(Arc::new);
            loaded
                .map_err(|message| problems.insert(clients.ca.clone(), message))
                .ok()
                .or(self.material.issuers.clone())
        });
        let ticket_secrets = wanted.ticket_file.as_ref().and_then(|path| {
            let secrets = material::ticket_secrets(path);
            secrets
                .map_err(|message| problems.insert(path.clone(), message))
                .ok()
                .or(self.material.ticket_secrets.clone())
        });
        let material = Material { certificates, issuers, ticket_secrets };
        let tls = ServerTls::new(wanted, material, Some(self)).unwrap_or_else(|message| {
            problems.insert(PathBuf::new(), message);
            Arc::clone(self)
        });
        let is_new = |(path, message): (&PathBuf, &String)| (known.get(path) != Some(message)).then(|| message.clone());
        let new_problems = problems.iter().filter_map(is_new).collect();
        let is_there = |loaded: &Arc<LoadedCertificate>| {
            tls.certificates().iter().any(|one| one.pair.certificate == loaded.pair.certificate)
        };
        let removed = self.certificates().iter().filter(|loaded| !is_there(loaded));
        let removed = removed.map(|loaded| loaded.pair.certificate.clone()).collect();
        let taken_up = tls.new_since(Some(self)).map(Arc::clone).collect();
        tls.watch(stamps, problems);
        Some(Renewed { tls, taken_up, removed, problems: new_problems })
    }

    fn renewed(
        &self,
        wanted: &TlsConfig,
        stamps: &mut Stamps,
        before: &Stamps,
        known: &Problems,
        problems: &mut Problems,
    ) -> Vec<Arc<LoadedCertificate>> {
        let pairs = match wanted.certificates.pairs() {
            Ok(pairs) => pairs,
            Err(e) => {
                let folder = wanted.certificates.folder().unwrap_or(Path::new(""));
                problems.insert(folder.to_owned(), format!("{} cannot be read as a folder: {e}", folder.display()));
                return self.certificates().to_vec();
            }
        };
        let in_use = |path: &Path| self.certificates().iter().find(|loaded| loaded.pair.certificate == path);
        let mut certificates = Vec::new();
        for pair in &pairs {
            let former = in_use(&pair.certificate);
            let is_unchanged = pair.files().all(|file| stamps.is_same(before, file));
            let is_right = !known.contains_key(&pair.certificate);
            if let Some(former) = former.filter(|former| former.pair == *pair && is_unchanged && is_right) {
                certificates.push(Arc::clone(former));
                continue;
            }
            match (LoadedCertificate::load(pair.clone()), former) {
                (Ok(loaded), _) => certificates.push(Arc::new(loaded)),
                (Err(PairError::KeyAlone), None) if wanted.certificates.folder().is_some() => {}
                // One file was read before it was replaced, and the other after it.
                (Err(_), Some(former)) if !stamps.hold_for(pair) => {
                    stamps.forget(pair);
                    certificates.push(Arc::clone(former));
                }
                (Err(unusable), former) => {
                    problems.insert(pair.certificate.clone(), unusable.to_string());
                    certificates.extend(former.map(Arc::clone));
                }
            }
        }
        // A certificate that settings name stays even if its file is gone, and so does the last one.
        let is_named = |path: &Path| {
            let pinned = wanted.pins.iter().filter_map(|(_, pinned)| pinned.as_deref());
            wanted.default.as_deref().into_iter().chain(pinned).any(|named| named == path)
        };
        let is_last = certificates.is_empty();
        let served = HostTable::new(wanted.hosts.iter().map(|host| (host.clone(), ())));
        // Keeping one certificate may change which names others lose, so this starts again after each.
        while let Some((position, former, message)) =
            self.certificates().iter().enumerate().find_map(|(index, former)| {
                let path = &former.pair.certificate;
                let position = certificates.iter().position(|loaded| loaded.pair.certificate == *path);
                let Some(position) = position else {
                    let lost = lost_names(former, &certificates, &served);
                    let message = format!("{} no longer exists{}", path.display(), no_other_for(&lost));
                    let stays = is_last || is_named(path) || !lost.is_empty();
                    return stays.then_some((Err(index), former, message));
                };
                let loaded = &certificates[position];
                if loaded.digest == former.digest {
                    return None;
                }
                let lost = lost_names(former, &certificates, &served);
                let message = match (former.is_valid(), loaded.is_valid()) {
                    (false, _) => return None,
                    (true, false) => {
                        let [from, until] = [loaded.leaf.not_before, loaded.not_after()].map(certificate::date);
                        format!("{} is not valid now, but from {from} until {until}", path.display())
                    }
                    (true, true) if lost.is_empty() => return None,
                    (true, true) => format!("{} is for other names than before{}", path.display(), no_other_for(&lost)),
                };
                Some((Ok(position), former, message))
            })
        {
            problems.insert(former.pair.certificate.clone(), message);
            match position {
                Ok(position) => certificates[position] = Arc::clone(former),
                // At its former position: the first one is the default.
                Err(index) => certificates.insert(index.min(certificates.len()), Arc::clone(former)),
            }
        }
        certificates
    }

    /// The problems with its files.
    pub(crate) fn problems(&self) -> Problems {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).problems.clone()
    }

    pub(super) fn watch(&self, stamps: Stamps, problems: Problems) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        (watched.stamps, watched.problems) = (stamps, problems);
    }
}

/// The served names of `former` that no valid certificate covers now. None if `former` is not valid itself.
fn lost_names<'a>(
    former: &'a LoadedCertificate,
    now: &[Arc<LoadedCertificate>],
    served: &HostTable<()>,
) -> Vec<&'a str> {
    if !former.is_valid() {
        return Vec::new();
    }
    let plain = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let names = now.iter().filter(|loaded| loaded.is_valid()).flat_map(|loaded| &loaded.leaf.names);
    let covered: HashSet<String> = names.map(|name| plain(name)).collect();
    let is_lost = |name: &&str| {
        let name = plain(name);
        // It is unknown which names a wildcard is used for.
        let is_served = name.starts_with("*.") || served.find(&name).is_some();
        let wildcard = name.split_once('.').map(|(_, domain)| format!("*.{domain}"));
        is_served && !covered.contains(&name) && !wildcard.is_some_and(|wildcard| covered.contains(&wildcard))
    };
    former.leaf.names.iter().map(String::as_str).filter(is_lost).collect()
}

fn no_other_for(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        _ => format!(", and no other certificate is for {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/config/toml/test-data");

    #[test]
    fn a_pair_is_loaded_when_complete_and_logged_once() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        let put = |name: &str, to: &Path| {
            fs::copy(Path::new(DATA).join(name), to).expect("copied");
        };
        put("cert.pem", &certificate);
        put("key.pem", &key);
        let wanted = TlsConfig::of_pair(certificate, key.clone());
        let tls = ServerTls::load(&wanted, None).expect("a sound pair");
        assert!(tls.renew(&wanted).is_none(), "nothing has changed");
        put("other-key.pem", &key);
        let renewed = tls.renew(&wanted).expect("a file has changed");
        assert!(Arc::ptr_eq(&renewed.tls, &tls) && renewed.taken_up.is_empty());
        assert!(matches!(renewed.problems.as_slice(), [one] if one.contains("does not belong")), "{renewed:?}");
        assert!(tls.renew(&wanted).is_none() && tls.problems().len() == 1, "it is said once");
        put("key.pem", &key);
        let renewed = tls.renew(&wanted).expect("a file has changed");
        assert!(renewed.problems.is_empty() && renewed.tls.problems().is_empty());
    }

    #[test]
    fn files_that_change_while_being_read_are_read_again() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| folder.path().join(name));
        fs::write(&certificate, "a").expect("written");
        fs::write(&key, "a").expect("written");
        let wanted = TlsConfig::of_pair(certificate, key.clone());
        let pairs = wanted.certificates.pairs().expect("one");
        let before = Stamps::of(&wanted);
        assert!(before.hold_for(&pairs[0]));
        fs::write(&key, "other").expect("written");
        assert!(!before.hold_for(&pairs[0]));
        let mut now = Stamps::of(&wanted);
        now.forget(&pairs[0]);
        assert!(!Stamps::of(&wanted).is_same(&now, &key) && Stamps::of(&wanted) != now);
    }
}
