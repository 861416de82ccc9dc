//! `evenkeel check`: problems of a configuration, settings that cannot work or have no effect, and what depends on this
//! machine: names that do not resolve, files that a user cannot read, changes in the state file.

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures_util::future::join_all;
use tokio::time::timeout;

use crate::change::Edits;
use crate::config::advice::{Subject, same_sockets};
use crate::config::backend::SocketAddress;
use crate::config::toml::{Checked, Warning};
use crate::config::{AccessLogFile, Config, Problem, UserAndGroup, advice, folder_of};
use crate::probe::resolver::{Question, Resolver};
use crate::user::{Owner, Rights, User, closed_files};
use crate::{control, state};

/// The time limit for all lookups together.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn check(file: &Path, user: Option<&str>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let user = user.map(named).transpose()?;
    let mut found = match control::load(file) {
        Ok(checked) => checked,
        Err(problems) => return Ok(super::report(file, &problems)),
    };
    found.warnings.extend(unresolved(&found)?);
    found.warnings.extend(missing_folders(&found));
    found.warnings.extend(missing_sockets(&found));
    found.warnings.extend(unusable_paths(&found));
    let user = user.map(Ok).or_else(|| found.config.server.user.as_ref().map(User::find));
    match user {
        Some(Ok(user)) => {
            let closed = closed_files(&found, Rights::Of(&user));
            found.warnings.extend(closed.into_iter().map(whole_file(true)));
            found.warnings.extend(owners(&found, Some(&user)));
        }
        Some(Err(problem)) => {
            let wanted = found.config.server.user.as_ref().map(ToString::to_string).unwrap_or_default();
            found.warnings.push(whole_file(true)(format!("[server] user is \"{wanted}\": {problem}")));
            found.warnings.extend(owners(&found, None));
        }
        None => found.warnings.extend(owners(&found, None)),
    }
    found.warnings.extend(kept_changes(&found.config).into_iter().map(whole_file(false)));
    for Warning { problem, is_error } in &found.warnings {
        let problem = match is_error {
            true => problem.clone(),
            false => Problem { message: format!("warning: {}", problem.message), ..problem.clone() },
        };
        eprintln!("{}", problem.in_file(file));
    }
    if found.warnings.iter().any(|warning| warning.is_error) {
        return Ok(ExitCode::FAILURE);
    }
    let config = found.config;
    let in_sites = config.sites.iter().map(|site| site.routes.len()).sum::<usize>();
    let backends = config.pools.iter().map(|pool| pool.backends.len()).sum();
    let counts = [
        super::counted(config.listeners.len(), "listener"),
        super::counted(config.pools.len(), "pool"),
        super::counted(backends, "backend"),
        super::counted(config.routes.len() + in_sites, "route"),
    ];
    let sites = match config.sites.len() {
        0 => String::new(),
        n => format!(", {}", super::counted(n, "site")),
    };
    let warnings = match found.warnings.len() {
        0 => String::new(),
        n => format!(", {}", super::counted(n, "warning")),
    };
    writeln!(out, "{}: ok ({}{sites}){warnings}", file.display(), counts.join(", "))?;
    Ok(ExitCode::SUCCESS)
}

fn named(name: &str) -> anyhow::Result<User> {
    let wanted = UserAndGroup::parse(name).with_context(|| format!("there is no user \"{name}\""))?;
    User::find(&wanted).map_err(anyhow::Error::msg)
}

fn whole_file(is_error: bool) -> impl Fn(String) -> Warning {
    move |message| Warning { problem: Problem { file: None, position: None, message }, is_error }
}

/// Backends whose names do not resolve here. They are looked up concurrently, as by a running balancer.
fn unresolved(checked: &Checked) -> anyhow::Result<Vec<Warning>> {
    let names = advice::names_to_resolve(&checked.config);
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let (resolver, config) = (&Resolver::default(), &checked.config.server.resolver);
    let ask = |address| async move {
        let mut early = None;
        let question = resolver.ask(Question::of(address), config, |answer| early = Some(answer));
        let answer = match timeout(LOOKUP_TIMEOUT, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(unanswered)) => return vec![(None, unanswered.reason().to_owned())],
            Err(_) => match early {
                Some(answer) => answer,
                None => return vec![(None, format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs()))],
            },
        };
        answer.problems().map(|(host, problem)| (Some(host), problem.to_owned())).collect()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("DNS cannot be asked")?;
    let problems = runtime.block_on(join_all(names.iter().map(|(address, _)| ask(address))));
    let servers: Vec<_> = resolver.servers(config).iter().map(ToString::to_string).collect();
    let servers = servers.join(", ");
    let mut warnings = Vec::new();
    for ((address, subject), problems) in names.iter().zip(problems) {
        for (host, problem) in problems {
            let host = host.map(|host| format!(", its host {host}")).unwrap_or_default();
            let message =
                format!("the name of backend {address}{host} does not resolve here: {problem} (DNS: {servers})");
            warnings.push(Warning { problem: checked.problem(*subject, message), is_error: false });
        }
    }
    Ok(warnings)
}

/// Files whose folders do not exist. A balancer does not start without its log and access log.
fn missing_folders(checked: &Checked) -> Vec<Warning> {
    let config = &checked.config;
    let access_log = match &config.access_log.file {
        Some(AccessLogFile::Path(path)) => Some(path),
        _ => None,
    };
    let written = [
        (config.log.file.as_ref(), "log", Subject::Log, true),
        (access_log, "access_log", Subject::AccessLog, true),
        (config.state.file.as_ref(), "state", Subject::State, false),
    ];
    let warning = |(path, section, subject, is_error): (Option<&PathBuf>, &str, Subject, bool)| {
        let folder = folder_of(path?);
        let message = format!(
            "[{section}] file is {}, but there is no folder {}: make it, or write another path",
            path?.display(),
            folder.display()
        );
        let problem = checked.problem(subject, message);
        (!folder.is_dir()).then_some(Warning { problem, is_error })
    };
    let sites = config.sites.iter().enumerate().flat_map(|(site, settings)| {
        let rules = settings.routes.iter().map(|route| &route.rules).chain([&settings.fallback]);
        let files = rules.flat_map(|rules| rules.access_log.iter().flatten()).filter_map(|log| match &log.file {
            AccessLogFile::Path(path) => Some(path),
            AccessLogFile::Stdout => None,
        });
        let mut known: Vec<&PathBuf> = Vec::new();
        for file in files {
            if !known.contains(&file) {
                known.push(file);
            }
        }
        known.into_iter().map(move |file| (Some(file), "site.access_log", Subject::Site { site }, true))
    });
    written.into_iter().chain(sites).filter_map(warning).collect()
}

/// Backends that are Unix sockets, with their paths.
fn unix_sockets(config: &Config) -> impl Iterator<Item = (Subject, &Path)> {
    config.pools.iter().enumerate().flat_map(|(pool, settings)| {
        let backends = settings.backends.iter().enumerate();
        backends.filter_map(move |(backend, wanted)| {
            Some((Subject::Backend { pool, backend }, wanted.address.unix_path()?))
        })
    })
}

/// Missing Unix sockets, and other kinds of files in their place.
fn missing_sockets(checked: &Checked) -> Vec<Warning> {
    let warning = |(subject, path): (Subject, &Path)| {
        let path_shown = path.display();
        let (is_error, message) = match fs::metadata(path) {
            Ok(file) if file.file_type().is_socket() => return None,
            Ok(_) => (true, format!("backend unix:{path_shown} is a file, but no socket: write the path of a socket")),
            Err(e) => (
                false,
                format!(
                    "the socket of backend unix:{path_shown} is not there now: {e}; start its server, or correct the path"
                ),
            ),
        };
        Some(Warning { problem: checked.problem(subject, message), is_error })
    };
    unix_sockets(&checked.config).filter_map(warning).collect()
}

/// Unknown owners of listeners' sockets, and owners that `user` cannot set.
fn owners(checked: &Checked, user: Option<&User>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (listener, settings) in checked.config.listeners.iter().enumerate() {
        let Some(wanted) = settings.socket_file.as_ref().and_then(|rights| rights.owner.as_ref()) else { continue };
        let (message, is_error) = match (Owner::find(wanted), user) {
            (Err(problem), _) => {
                (format!("listener.owner is \"{wanted}\": {problem}: correct it, or leave it out"), true)
            }
            (Ok(owner), Some(user)) if !user.can_give(owner) => {
                let message = format!(
                    "listener.owner is \"{wanted}\", which user {} cannot set as the owner of a socket: only a start as root can, in a \
                     folder that belongs to root, and no reload; name the user itself and one of its groups, or add it to \
                     the group (`usermod -aG GROUP {}`, SupplementaryGroups= in systemd)",
                    user.name, user.name
                );
                (message, false)
            }
            (Ok(_), _) => continue,
        };
        warnings.push(Warning { problem: checked.problem(Subject::Listener { listener }, message), is_error });
    }
    warnings
}

/// Paths of listeners at which no socket can be created. The folder may be created together with the process
/// (RuntimeDirectory= in systemd).
fn unusable_paths(checked: &Checked) -> Vec<Warning> {
    let listeners = checked.config.listeners.iter().enumerate();
    let paths = listeners.flat_map(|(listener, settings)| {
        settings.addresses.iter().filter_map(move |address| match address {
            SocketAddress::Unix(path) => Some((Subject::Listener { listener }, path)),
            SocketAddress::Ip(_) => None,
        })
    });
    let warning = |(subject, path): (Subject, &Arc<Path>)| {
        let folder = folder_of(path);
        let (message, is_error) = match fs::symlink_metadata(path) {
            Ok(file) if !file.file_type().is_socket() => {
                let path = path.display();
                (format!("listener unix:{path} is a file, but no socket: remove it, or write another path"), true)
            }
            _ if !folder.is_dir() => {
                let (path, folder) = (path.display(), folder.display());
                let fix = "make it before the start (RuntimeDirectory= in systemd), or write another path";
                (format!("listener unix:{path} has no folder {folder} now: {fix}"), false)
            }
            _ => return None,
        };
        Some(Warning { problem: checked.problem(subject, message), is_error })
    };
    let same = same_sockets(&checked.config.listeners).map(|(listener, message)| Warning {
        problem: checked.problem(Subject::Listener { listener }, message),
        is_error: true,
    });
    paths.filter_map(warning).chain(same).collect()
}

/// Changes in the state file that a start with this configuration would apply.
fn kept_changes(config: &Config) -> Vec<String> {
    let Some(path) = &config.state.file else { return Vec::new() };
    let kept = match state::peek(path) {
        Ok(kept) => kept,
        Err(problem) => return vec![format!("the state file {} {problem}", path.display())],
    };
    let (in_force, overtaken) = kept.restore(config);
    let edits = Edits::between(config, &in_force);
    let edits = edits.iter().map(|edit| format!("by a change at run time, kept in {}: {edit}", path.display()));
    let dropped = overtaken.iter().map(|conflict| {
        format!("a change at run time, kept in {}, is dropped: {}", path.display(), conflict.with_file())
    });
    edits.chain(dropped).collect()
}
