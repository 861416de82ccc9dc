//! Users and groups of this machine, by name or number, and what they may do with files.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, getgrouplist, setgid, setgroups, setuid};
use rustix::fs::{Access, access, getxattr_query};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use crate::config::tls::AdditionalCertificates;
use crate::config::toml::Checked;
use crate::config::{AccessLogFile, Config, UserAndGroup, folder_of};

const READ: u32 = 0o4;
const WRITE: u32 = 0o2;
const SEARCH: u32 = 0o1;
const STICKY: u32 = 0o1000;

/// As many as the system follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// A user that the process can become, or whose permissions are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub name: String,
    pub uid: Uid,
    pub gid: Gid,
    /// All groups, including `gid`.
    pub groups: Vec<Gid>,
}

/// How the permissions of a user are checked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rights<'a> {
    /// By permission bits; access control lists are not checked.
    Of(&'a User),
    /// By asking the system about this process, which runs as this user.
    OfProcess(&'a User),
}

/// The owner to set for a file; `None`: unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl User {
    /// The user with this name and its groups, or with only the named group. A numeric id need not exist in the system:
    /// it then has only its own group.
    pub(crate) fn find(wanted: &UserAndGroup) -> Result<Self, String> {
        let name = wanted.user.as_deref().ok_or_else(|| format!("\"{wanted}\" names no user"))?;
        let known = known_user(name)?;
        let group = wanted.group.as_deref().map(group_id).transpose()?;
        let (uid, gid, groups) = match (known, group) {
            (Some(user), Some(gid)) => (user.uid, gid, vec![gid]),
            (Some(user), None) => (user.uid, user.gid, groups_of(&user)?),
            (None, group) => {
                let uid = name.parse().map_err(|_| format!("there is no user \"{name}\""))?;
                let gid = group.unwrap_or(Gid::from_raw(uid));
                (Uid::from_raw(uid), gid, vec![gid])
            }
        };
        Ok(Self { name: name.to_owned(), uid, gid, groups })
    }

    /// Makes the whole process run as this user, which needs root. It keeps the privilege to bind ports below 1024, if
    /// it has it, so that a reload can open them; returns whether it does.
    ///
    /// No other thread may run yet: capabilities belong to a thread, and new threads inherit those of their creator.
    pub(crate) fn become_it(&self) -> io::Result<bool> {
        if fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::other("threads are running already"));
        }
        let had = capabilities(None)?.permitted;
        let kept = had & CapabilitySet::NET_BIND_SERVICE;
        set_keep_capabilities(true)?;
        setgroups(&self.groups)?;
        setgid(self.gid)?;
        setuid(self.uid)?;
        set_capabilities(
            None,
            CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
        )?;
        set_keep_capabilities(false)?;
        // Programs that it runs get no additional privileges.
        set_no_new_privs(true)?;
        Ok(!kept.is_empty())
    }

    /// Whether this user can give its own files to that owner.
    pub(crate) fn can_give(&self, to: Owner) -> bool {
        let is_same = to.uid.is_none_or(|uid| uid == self.uid.as_raw());
        let is_member = to.gid.is_none_or(|gid| self.gid.as_raw() == gid || self.groups.contains(&Gid::from_raw(gid)));
        self.uid.is_root() || (is_same && is_member)
    }

    /// Whether this user cannot change what `path` leads to, so that root may create a file there: every folder on the
    /// way, also behind links, belongs to root and is not writable for the user. In a folder like /tmp, where only
    /// owners can replace entries, the entry must belong to root.
    pub(crate) fn cannot_redirect(&self, path: &Path) -> bool {
        let steps = steps(path);
        let Some((last, parents)) = steps.split_last() else { return false };
        let is_safe = |Step { folder, entry }: &Step| {
            self.leaves_to_root(folder)
                || (is_roots(folder, |folder| folder.mode() & STICKY != 0)
                    && fs::symlink_metadata(entry).is_ok_and(|entry| entry.uid() == 0))
        };
        parents.iter().all(is_safe) && self.leaves_to_root(&last.folder)
    }

    /// Whether a folder belongs to root and is not writable for this user. If it is group-writable, an access control
    /// list may permit others, too.
    fn leaves_to_root(&self, folder: &Path) -> bool {
        let has_list = || getxattr_query(folder, "system.posix_acl_access").is_ok();
        is_roots(folder, |found| {
            let group = Gid::from_raw(found.gid());
            let is_closed_to_group = found.mode() & (WRITE << 3) == 0;
            found.mode() & WRITE == 0 && (is_closed_to_group || !(self.groups.contains(&group) || has_list()))
        })
    }

    fn may(&self, rights: u32, of: &Metadata) -> bool {
        let shift = match of.uid() {
            _ if self.uid.is_root() => return true,
            owner if owner == self.uid.as_raw() => 6,
            _ if self.groups.contains(&Gid::from_raw(of.gid())) => 3,
            _ => 0,
        };
        (of.mode() >> shift) & rights == rights
    }

    /// Commands that give its group these permissions.
    fn commands(&self, path: &Path, rights: u32) -> String {
        let group = Group::from_gid(self.gid).ok().flatten().map_or(self.gid.to_string(), |group| group.name);
        let letters: String = [(READ, 'r'), (WRITE, 'w'), (SEARCH, 'x')]
            .into_iter()
            .filter(|(bit, _)| rights & bit != 0)
            .map(|(_, c)| c)
            .collect();
        let path = path.display();
        format!("`chgrp {group} {path} && chmod g+{letters} {path}`")
    }
}

impl Rights<'_> {
    fn user(&self) -> &User {
        match self {
            Self::Of(user) | Self::OfProcess(user) => user,
        }
    }

    fn has(&self, path: &Path, rights: u32) -> bool {
        match self {
            Self::Of(user) => fs::metadata(path).is_ok_and(|file| user.may(rights, &file)),
            Self::OfProcess(_) => {
                let asked = [(READ, Access::READ_OK), (WRITE, Access::WRITE_OK), (SEARCH, Access::EXEC_OK)];
                let asked = asked.into_iter().filter(|(bit, _)| rights & bit != 0).map(|(_, access)| access);
                access(path, asked.fold(Access::EXISTS, |all, one| all | one)).is_ok()
            }
        }
    }

    /// How to give the user these permissions for a file or folder; `None`: it has them, and can search every folder on
    /// the way.
    fn missing(&self, path: &Path, rights: u32) -> Option<String> {
        if let Some(step) = steps(path).iter().find(|step| !self.has(&step.folder, SEARCH)) {
            return Some(self.user().commands(&step.folder, SEARCH));
        }
        let path = fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned());
        (!self.has(&path, rights)).then(|| self.user().commands(&path, rights))
    }

    /// Whether a start as root creates a log there for the user, who could not do so.
    fn root_makes(&self, path: &Path, config: &Config) -> bool {
        matches!(self, Self::Of(user) if config.server.user.is_some() && user.cannot_redirect(path))
    }
}

/// A name that the system looks up in a folder.
struct Step {
    folder: PathBuf,
    entry: PathBuf,
}

/// Each name that is looked up on the way to a file, in order, including those of links that are followed. An entry
/// that cannot be examined counts as no link.
fn steps(path: &Path) -> Vec<Step> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let names = |path: &Path| path.components().map(|name| name.as_os_str().to_owned()).collect::<VecDeque<OsString>>();
    let (mut rest, mut folder) = (names(&path), PathBuf::from("/"));
    let (mut steps, mut links) = (Vec::new(), 0);
    while let Some(name) = rest.pop_front() {
        match name.as_bytes() {
            b"/" => folder = PathBuf::from("/"),
            b"." => {}
            b".." => drop(folder.pop()),
            _ => {
                let entry = folder.join(&name);
                let target = fs::read_link(&entry).ok().filter(|_| links < MAX_LINKS);
                steps.push(Step { folder: folder.clone(), entry: entry.clone() });
                match target {
                    Some(target) => {
                        links += 1;
                        let mut target = names(&target);
                        target.append(&mut rest);
                        rest = target;
                    }
                    None => folder = entry,
                }
            }
        }
    }
    steps
}

/// Whether a folder belongs to root and is suitable.
fn is_roots(folder: &Path, is_fitting: impl FnOnce(&Metadata) -> bool) -> bool {
    fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == 0 && is_fitting(&found))
}

/// Every file that is opened while a balancer runs and that the user has no permission for, with how to permit it.
pub(crate) fn closed_files(checked: &Checked, rights: Rights<'_>) -> Vec<String> {
    let config = &checked.config;
    let name = &rights.user().name;
    let mut problems = Vec::new();
    for path in read_again(checked) {
        if let Some(mended) = rights.missing(&path, READ) {
            problems.push(format!("user {name} cannot read {}: {mended} lets it", path.display()));
        }
    }
    for folder in certificate_folders(config) {
        if let Some(mended) = rights.missing(folder, READ | SEARCH) {
            problems.push(format!("user {name} cannot read the folder {}: {mended} lets it", folder.display()));
        }
    }
    let backends = config.pools.iter().flat_map(|pool| &pool.backends);
    for path in backends.filter_map(|backend| backend.address.unix_path()).filter(|path| path.exists()) {
        if let Some(mended) = rights.missing(path, WRITE) {
            problems.push(format!("user {name} cannot connect to backend unix:{}: {mended} lets it", path.display()));
        }
    }
    // A new state file replaces the old one by a rename. A missing folder is reported elsewhere.
    if let Some(path) = &config.state.file {
        let folder = folder_of(path);
        if folder.is_dir() && rights.missing(folder, WRITE | SEARCH).is_some() {
            problems.push(format!(
                "user {name} cannot write to {}, where the state file {} is kept: set [state] file to a path where it can, or persist = false",
                folder.display(),
                path.display()
            ));
        } else if path.exists()
            && let Some(mended) = rights.missing(path, READ)
        {
            problems.push(format!("user {name} cannot read the state file {}: {mended} lets it", path.display()));
        }
    }
    for (what, path) in logs(config).filter(|(_, path)| folder_of(path).is_dir()) {
        if !path.exists() && rights.root_makes(path, config) {
            continue;
        }
        let (needed, bits) = match path.exists() {
            true => (path.to_owned(), WRITE),
            false => (folder_of(path).to_owned(), WRITE | SEARCH),
        };
        if let Some(mended) = rights.missing(&needed, bits) {
            problems.push(format!("user {name} cannot write the {what} {}: {mended} lets it", path.display()));
        }
    }
    problems
}

/// The files that a reload, or a check for renewed certificates, reads.
fn read_again(checked: &Checked) -> Vec<PathBuf> {
    let config = &checked.config;
    let mut files: Vec<PathBuf> = checked.files().map(Path::to_owned).collect();
    files.extend(config.sites.iter().flat_map(|site| site.files()).map(Path::to_owned));
    for tls in config.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
        let pairs = tls.certificates.pairs().unwrap_or_default();
        files.extend(pairs.iter().flat_map(|pair| pair.files()).map(Path::to_owned));
        files.extend(tls.client_certificates.as_ref().map(|clients| clients.ca.clone()));
        files.extend(tls.ticket_file.clone());
    }
    for tls in config.pools.iter().filter_map(|pool| pool.settings.transport.tls.as_ref()) {
        files.extend([&tls.ca, &tls.certificate, &tls.key].into_iter().flatten().cloned());
    }
    files.extend([&config.admin.token_file, &config.admin.read_token_file].into_iter().flatten().cloned());
    let sticky = config.pools.iter().filter_map(|pool| pool.settings.sticky.as_ref());
    files.extend(sticky.filter_map(|sticky| sticky.secret_file.clone()));
    files.dedup();
    files
}

/// The folders whose certificates are loaded as they change.
fn certificate_folders(config: &Config) -> impl Iterator<Item = &Path> {
    let tls = config.listeners.iter().filter_map(|listener| listener.tls.as_ref());
    tls.filter_map(|tls| match &tls.certificates.others {
        Some(AdditionalCertificates::Folder(folder)) => Some(folder.as_path()),
        _ => None,
    })
}

/// The log files, without duplicates, with what each is.
pub(crate) fn logs(config: &Config) -> impl Iterator<Item = (&'static str, &Path)> {
    let mut logs: Vec<(&'static str, &Path)> = Vec::new();
    logs.extend(config.log.file.as_deref().map(|file| ("log", file)));
    let rules =
        config.sites.iter().flat_map(|site| site.routes.iter().map(|route| &route.rules).chain([&site.fallback]));
    let of_sites = rules.flat_map(|rules| rules.access_log.iter().flatten()).map(|log| &log.file);
    for file in config.access_log.file.iter().chain(of_sites) {
        let AccessLogFile::Path(file) = file else { continue };
        let file = file.as_path();
        if !logs.iter().any(|(_, known)| *known == file) {
            logs.push(("access log", file));
        }
    }
    logs.into_iter()
}

impl Owner {
    pub(crate) fn find(wanted: &UserAndGroup) -> Result<Self, String> {
        let user = |name: &str| match known_user(name)? {
            Some(user) => Ok(user.uid.as_raw()),
            None => name.parse().map_err(|_| format!("there is no user \"{name}\"")),
        };
        let uid = wanted.user.as_deref().map(user).transpose()?;
        let gid = wanted.group.as_deref().map(group_id).transpose()?.map(Gid::as_raw);
        Ok(Self { uid, gid })
    }
}

fn known_user(name: &str) -> Result<Option<nix::unistd::User>, String> {
    let by_name =
        nix::unistd::User::from_name(name).map_err(|e| format!("the user \"{name}\" cannot be looked up: {e}"))?;
    match (by_name, name.parse()) {
        (None, Ok(uid)) => nix::unistd::User::from_uid(Uid::from_raw(uid))
            .map_err(|e| format!("the user {uid} cannot be looked up: {e}")),
        (by_name, _) => Ok(by_name),
    }
}

fn group_id(name: &str) -> Result<Gid, String> {
    let group = Group::from_name(name).map_err(|e| format!("the group \"{name}\" cannot be looked up: {e}"))?;
    match (group, name.parse()) {
        (Some(group), _) => Ok(group.gid),
        (None, Ok(gid)) => Ok(Gid::from_raw(gid)),
        (None, Err(_)) => Err(format!("there is no group \"{name}\"")),
    }
}

fn groups_of(user: &nix::unistd::User) -> Result<Vec<Gid>, String> {
    let cannot =
        |e: &dyn std::fmt::Display| format!("the groups of the user \"{}\" cannot be looked up: {e}", user.name);
    let name = CString::new(user.name.as_str()).map_err(|e| cannot(&e))?;
    getgrouplist(&name, user.gid).map_err(|e| cannot(&e))
}
