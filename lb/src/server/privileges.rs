//! A process that is started as root becomes the configured user, as nginx's workers do. What needs root is opened
//! before that. Files that are opened again later must be accessible to that user, which is checked at the start and
//! not discovered when a certificate is renewed months later.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::fchown;

use anyhow::{Context, bail};
use nix::unistd::Uid;

use super::Sockets;
use crate::config::Config;
use crate::config::backend::SocketAddress;
use crate::config::toml::Checked;
use crate::listen::sockets::{Ids, cannot_listen};
use crate::user::{Rights, User, closed_files, logs};

/// Becomes `[server] user`, if one is configured and the process runs as root. Returns a message, and whether it is a
/// warning. Before that, Unix sockets in folders owned by root are bound and added to `sockets`, and logs are created
/// there. Where the user could change what a path leads to, nothing is done with root's rights: the process creates it
/// as the user. Must be called before any thread is started.
pub fn give_up_root(checked: &Checked, sockets: &mut Sockets) -> anyhow::Result<Option<(String, bool)>> {
    let config = &checked.config;
    let Some(wanted) = &config.server.user else { return Ok(None) };
    let (found, present) = (User::find(wanted), Uid::effective());
    if !present.is_root() {
        let is_other = found.is_ok_and(|user| user.uid != present);
        let message = format!(
            "[server] user is \"{wanted}\", but only root can become another user: the process stays user {present}"
        );
        return Ok(is_other.then_some((message, true)));
    }
    let user = found.map_err(|problem| anyhow::anyhow!("[server] user is \"{wanted}\": {problem}"))?;
    if user.uid.is_root() {
        return Ok(None);
    }
    create_logs(config, &user)?;
    bind_unix_sockets(config, &user, sockets)?;
    let keeps_ports = user.become_it().with_context(|| format!("the process cannot become user {}", user.name))?;
    let closed = closed_files(checked, Rights::OfProcess(&user));
    if !closed.is_empty() {
        bail!("what a reload opens again is closed to [server] user:\n{}", closed.join("\n"));
    }
    let ports = match keeps_ports {
        true => "it may still bind ports below 1024",
        false => "it cannot bind ports below 1024, for which it lacked CAP_NET_BIND_SERVICE",
    };
    Ok(Some((format!("the process has become user {}: {ports}", user.name), false)))
}

/// Creates missing logs in folders owned by root, and gives them to the user.
fn create_logs(config: &Config, user: &User) -> anyhow::Result<()> {
    for (what, path) in logs(config).filter(|(_, path)| user.cannot_redirect(path)) {
        match OpenOptions::new().append(true).create_new(true).open(path) {
            Ok(file) => fchown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
                .with_context(|| format!("the {what} {} cannot be given to user {}", path.display(), user.name))?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => bail!(
                "cannot write the {what} {}: change its setting, or make its folder one that can be written to: {e}",
                path.display()
            ),
        }
    }
    Ok(())
}

/// Binds Unix sockets in folders owned by root. They belong to the user unless the configuration says otherwise.
fn bind_unix_sockets(config: &Config, user: &User, sockets: &mut Sockets) -> anyhow::Result<()> {
    for listener in &config.listeners {
        let Some(rights) = &listener.socket_file else { continue };
        for address in listener.addresses.iter() {
            if let SocketAddress::Unix(path) = address
                && user.cannot_redirect(path)
            {
                let bound = sockets.bind_unix(path, rights, Ids { uid: user.uid.as_raw(), gid: user.gid.as_raw() });
                bound.map_err(|e| anyhow::anyhow!(cannot_listen(address, "[[listener]] address", &e)))?;
            }
        }
    }
    Ok(())
}
