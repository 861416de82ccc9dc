//! The command line: runs a balancer, checks a configuration, and queries or controls a running balancer over its admin
//! API. The function that runs a balancer is passed in, so that everything else can be tested without one.

mod admin;
mod check;
mod explain;
mod status;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::builder::{PossibleValue, TypedValueParser};
use clap::{Arg, Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::config::algorithm::Algorithm;
use crate::config::toml;
use admin::{AdminUrl, ChangeResponse, Client, printable};

const DEFAULT_FILE: &str = "evenkeel.toml";

const EXAMPLES: &str = "\
Examples:
  evenkeel config --default > evenkeel.toml    start with every setting, explained
  evenkeel check                               report every problem, with line, column and a fix
  evenkeel run                                 run the balancer
  evenkeel status --watch                      show every backend, refreshed every second
  evenkeel algorithm least-connections         switch every pool; no request fails
  evenkeel drain web1:8888 --dry-run           show what a drain would do
  evenkeel drain web1:8888                     let it finish its requests, and send it no new ones
  evenkeel drain web1:8888 --deadline 30s      and kill what is still open after 30 seconds
  evenkeel undo 3                              undo change 3 of `evenkeel changes`
  evenkeel config --diff                       show what is in force and not in the file
  evenkeel reset                               undo everything that is not in the file
  evenkeel reload                              read the configuration again, like SIGHUP

Exit codes:
  0  done
  1  failed, or the configuration has problems
  2  the command line was not understood";

/// A load balancer that can be changed while it runs
///
/// `run` starts the balancer. `check`, `config` and `completions` only look at files; every other command queries or
/// controls a running balancer over its admin API.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES, after_help = "`evenkeel --help` shows examples and exit codes.")]
struct Cli {
    #[command(flatten)]
    admin: AdminOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Which running balancer")]
struct AdminOptions {
    /// Address of its admin API
    #[arg(long, value_name = "URL", global = true, env = "EVENKEEL_ADMIN", default_value = "http://127.0.0.1:8889")]
    admin: AdminUrl,
    /// File with its admin token, if it requires one
    #[arg(long, value_name = "FILE", global = true, env = "EVENKEEL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a balancer until SIGTERM or Ctrl-C
    ///
    /// SIGHUP reloads the configuration, SIGUSR1 reopens the logs, SIGTERM finishes requests in flight and stops.
    Run {
        /// The configuration file
        #[arg(long, short, value_name = "FILE", env = "EVENKEEL_CONFIG", default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Report every problem of a configuration, as FILE:LINE:COLUMN: message
    ///
    /// A warning is about a setting that has no effect, or fails only on this machine; it does not make the check fail.
    Check {
        /// The configuration file
        #[arg(env = "EVENKEEL_CONFIG", default_value = DEFAULT_FILE)]
        file: PathBuf,
        /// Also report files that this user cannot read or write, by their permissions; by default `[server] user`
        #[arg(long, value_name = "NAME")]
        user: Option<String>,
        /// Explain what happens to a request, such as 'GET https://shop.example/cart?id=7', and which lines of the file
        /// cause it
        #[allow(rustdoc::bare_urls, reason = "it is shown as it is written")]
        #[arg(long, value_name = "REQUEST", conflicts_with = "user")]
        explain: Option<String>,
        #[command(flatten)]
        asked: explain::RequestArgs,
    },
    /// Print a configuration: the file's with all defaults, as JSON
    Config {
        /// The configuration file
        #[arg(long, short, value_name = "FILE", env = "EVENKEEL_CONFIG", default_value = DEFAULT_FILE)]
        config: PathBuf,
        /// Print every setting with its default and an explanation instead, as TOML to start from
        #[arg(long)]
        default: bool,
        /// Print the JSON schema of configuration files instead, for editors
        #[arg(long, conflicts_with_all = ["default", "running", "toml", "diff"])]
        schema: bool,
        /// Print the configuration of the running balancer instead, runtime changes included
        #[arg(long, conflicts_with = "default")]
        running: bool,
        /// As a configuration file that can be read again
        #[arg(long, conflicts_with = "default")]
        toml: bool,
        /// Print how the configuration of the running balancer differs from its file instead
        #[arg(long, conflicts_with_all = ["default", "running", "toml"])]
        diff: bool,
    },
    /// Print a script that completes this command line in a shell
    ///
    /// For example, in ~/.bashrc: source <(evenkeel completions bash)
    Completions { shell: Shell },
    /// Reload the configuration file
    Reload {
        /// Change nothing; report what would change, and whether new resources are available
        #[arg(long)]
        dry_run: bool,
    },
    /// Show every pool and backend
    Status {
        /// Refresh every second, with requests per second and shares, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// As JSON, one line per refresh
        #[arg(long)]
        json: bool,
    },
    /// Show the algorithms, or switch to another
    Algorithm {
        #[arg(value_parser = AlgorithmParser)]
        name: Option<Algorithm>,
        /// Only this pool, not all
        #[arg(long)]
        pool: Option<String>,
        #[command(flatten)]
        args: ChangeArgs,
    },
    /// Let a backend finish its requests and give it no new ones
    ///
    /// It stays in its pool and is probed, so `undrain` brings it back at once. `backend remove` also lets it finish,
    /// and then removes it.
    ///
    /// With --deadline the command waits until the backend has finished, the grace of its sticky clients included. At
    /// the deadline that grace ends, and what is still open is killed: WebSockets, long downloads. The deadline applies
    /// even if this command is interrupted; `undrain` cancels it, and then this command fails.
    Drain {
        #[command(flatten)]
        backend: BackendArgument,
        #[command(flatten)]
        args: ChangeArgs,
        #[command(flatten)]
        deadline: DeadlineArgument,
    },
    /// Kill every exchange that a backend has open now
    ///
    /// Its state does not change: drain it first, or it gets new ones at once. Requests without a response that are
    /// safe to repeat are retried on another backend; the others are cut off. None of them counts as a failure of the
    /// backend.
    Kill {
        #[command(flatten)]
        backend: BackendArgument,
        /// Kill nothing; print how many are open
        #[arg(long)]
        dry_run: bool,
    },
    /// Give a drained backend traffic again
    Undrain {
        #[command(flatten)]
        backend: BackendArgument,
        #[command(flatten)]
        args: ChangeArgs,
    },
    /// Change a backend's share of the traffic
    Weight {
        #[command(flatten)]
        backend: BackendArgument,
        /// 1 to 1000
        weight: u32,
        #[command(flatten)]
        args: ChangeArgs,
    },
    /// Add or remove a backend
    #[command(subcommand)]
    Backend(BackendCommand),
    /// List the changes since the start, newest first: id, time, author, change
    Changes,
    /// Undo a change, if its result is still in force
    Undo {
        /// The id that `evenkeel changes` shows
        id: u64,
        #[command(flatten)]
        args: ChangeArgs,
    },
    /// Undo every change in force that the configuration file lacks
    Reset {
        /// Only in this pool
        #[arg(long)]
        pool: Option<String>,
        #[command(flatten)]
        args: ChangeArgs,
    },
    /// Succeed if the balancer is ready for traffic
    Health,
}

/// Options of a change.
#[derive(Debug, Clone, Copy, Default, Args)]
struct ChangeArgs {
    /// Change nothing; print the effects
    #[arg(long)]
    dry_run: bool,
    /// Even if only unhealthy backends would be left
    #[arg(long)]
    force: bool,
    /// Kill what is still open on the backend after this time.
    #[arg(skip)]
    deadline: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Args)]
struct DeadlineArgument {
    /// Kill what is still open after this time, such as 30s; 0s: at once
    #[arg(long, value_name = "DURATION", value_parser = deadline)]
    deadline: Option<Duration>,
}

impl ChangeArgs {
    fn until(self, DeadlineArgument { deadline }: DeadlineArgument) -> Self {
        Self { deadline, ..self }
    }
}

fn deadline(text: &str) -> Result<Duration, String> {
    toml::deadline(text).map_err(|write| format!("write {write}"))
}

#[derive(Debug, Args)]
struct BackendArgument {
    /// As in the configuration, such as web1:8888
    address: String,
    /// Its pool; needed only when several pools have it
    #[arg(long)]
    pool: Option<String>,
}

#[derive(Debug, Subcommand)]
enum BackendCommand {
    /// Add a backend to a pool
    Add {
        /// HOST:PORT
        address: String,
        /// The pool; needed only when there are several
        #[arg(long)]
        pool: Option<String>,
        /// Its share of the traffic, 1 to 1000
        #[arg(long, default_value_t = 1)]
        weight: u32,
        /// Limit on its requests in flight; no limit by default
        #[arg(long)]
        max_connections: Option<u32>,
        #[command(flatten)]
        args: ChangeArgs,
    },
    /// Remove a backend once it has finished its requests
    Remove {
        #[command(flatten)]
        backend: BackendArgument,
        #[command(flatten)]
        args: ChangeArgs,
        #[command(flatten)]
        deadline: DeadlineArgument,
    },
}

/// Parses the names of algorithms, and suggests one for a name of another balancer.
#[derive(Debug, Clone)]
struct AlgorithmParser;

impl TypedValueParser for AlgorithmParser {
    type Value = Algorithm;

    fn parse_ref(&self, command: &clap::Command, _: Option<&Arg>, value: &OsStr) -> Result<Algorithm, clap::Error> {
        let parsed = value.to_string_lossy().parse::<Algorithm>();
        parsed.map_err(|e| clap::Error::raw(clap::error::ErrorKind::InvalidValue, format!("{e}\n")).with_cmd(command))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Algorithm::ALL.into_iter().map(|algorithm| PossibleValue::new(algorithm.as_str()))))
    }
}

/// Runs the command line. `run` runs a balancer with the configuration at a path until it is told to stop.
pub fn main(run: impl FnOnce(&Path) -> anyhow::Result<()>) -> ExitCode {
    match Cli::parse().execute(run, &mut io::stdout()) {
        Ok(code) => code,
        // The reader of our output has closed the pipe.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe) => ExitCode::SUCCESS,
        Err(e) => {
            crate::log::say(&format!("error: {e:#}"));
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn execute(self, run: impl FnOnce(&Path) -> anyhow::Result<()>, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
        let client = || Client::new(self.admin.admin, self.admin.token_file.as_deref());
        match self.command {
            Command::Run { config } => run(&config)?,
            Command::Check { file, explain: Some(request), asked, .. } => {
                return explain::explain(&file, &request, &asked, out);
            }
            Command::Check { file, user, .. } => return check::check(&file, user.as_deref(), out),
            Command::Config { default: true, .. } => out.write_all(toml::DEFAULT.as_bytes())?,
            Command::Config { schema: true, .. } => writeln!(out, "{:#}", toml::schema::schema())?,
            Command::Config { diff: true, .. } => drift(&client()?, out)?,
            Command::Config { running: true, toml, .. } => {
                write_config(&client()?.get("/admin/config")?, toml, out)?;
            }
            Command::Config { config, toml, .. } => return print_config(&config, toml, out),
            Command::Completions { shell } => complete(shell, out)?,
            Command::Reload { dry_run } => reload(&client()?, dry_run, out)?,
            Command::Status { watch: true, json } => status::watch(&client()?, json, out)?,
            Command::Status { json: true, .. } => writeln!(out, "{}", client()?.get("/admin/pools")?)?,
            Command::Status { .. } => status::print(&client()?, out)?,
            Command::Algorithm { name: None, pool, .. } => algorithms(&client()?, pool.as_deref(), out)?,
            Command::Algorithm { name: Some(name), pool, args } => {
                switch(&client()?, name, pool.as_deref(), args, out)?
            }
            Command::Drain { backend, args, deadline } => {
                backend.change(&client()?, &json!({ "state": "draining" }), args.until(deadline), out)?;
            }
            Command::Kill { backend, dry_run } => backend.kill(&client()?, dry_run, out)?,
            Command::Undrain { backend, args } => {
                backend.change(&client()?, &json!({ "state": "active" }), args, out)?
            }
            Command::Weight { backend, weight, args } => {
                backend.change(&client()?, &json!({ "weight": weight }), args, out)?;
            }
            Command::Backend(BackendCommand::Add { address, pool, weight, max_connections, args }) => {
                let mut backend = json!({ "address": address, "weight": weight });
                if let Some(max) = max_connections {
                    backend["max_connections"] = json!(max);
                }
                add(&client()?, pool.as_deref(), &backend, args, out)?;
            }
            Command::Backend(BackendCommand::Remove { backend, args, deadline }) => {
                backend.remove(&client()?, args.until(deadline), out)?;
            }
            Command::Changes => changes(&client()?, out)?,
            Command::Undo { id, args } => restore(&client()?.undo(id, args)?, out)?,
            Command::Reset { pool, args } => restore(&client()?.reset(pool.as_deref(), args)?, out)?,
            Command::Health => writeln!(out, "{}", client()?.ready()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_config(file: &Path, as_toml: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match toml::load(file) {
        Ok(checked) => write_config(&serde_json::to_value(&checked.config)?, as_toml, out)?,
        Err(problems) => return Ok(report(file, &problems)),
    }
    Ok(ExitCode::SUCCESS)
}

fn write_config(config: &Value, as_toml: bool, out: &mut dyn Write) -> io::Result<()> {
    match as_toml {
        true => out.write_all(toml::writer::write(config).as_bytes()),
        false => writeln!(out, "{config:#}"),
    }
}

/// Differences between the configuration in force and the file, and settings that need a restart.
fn drift(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let drift = client.drift()?;
    for edit in &drift.edits {
        writeln!(out, "{}", printable(&edit.text))?;
    }
    for setting in &drift.awaiting_restart {
        writeln!(out, "in the file, from the next start on: {}", printable(setting))?;
    }
    if drift.edits.is_empty() && drift.awaiting_restart.is_empty() {
        writeln!(out, "the configuration in force is that of {}", printable(&drift.file))?;
    }
    Ok(())
}

fn changes(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    for change in client.changes()?.changes {
        let from = change.from.map_or(String::new(), |from| format!(" from {from}"));
        let texts: Vec<_> = match (&change.reloaded, change.edits.as_slice()) {
            (Some(changes), _) if changes.is_empty() => vec!["reloaded, nothing has changed".to_owned()],
            (Some(changes), _) => vec![format!("reloaded: {}", changes.join("; "))],
            (None, edits) => edits.iter().map(|edit| edit.text.clone()).collect(),
        };
        let undoes = change.undoes.map_or(String::new(), |id| format!(" (undoes {id})"));
        let line = format!("{}  {}  {}{from}  {}{undoes}", change.id, change.at, change.by, texts.join("; "));
        writeln!(out, "{}", printable(&line))?;
    }
    Ok(())
}

/// Prints what undo and reset have restored.
fn restore(answer: &ChangeResponse, out: &mut dyn Write) -> anyhow::Result<()> {
    if print_change(answer, out)? {
        return Ok(());
    }
    for edit in &answer.edits {
        writeln!(out, "{}", printable(&edit.text))?;
    }
    if answer.edits.is_empty() {
        writeln!(out, "nothing to put back")?;
    }
    Ok(())
}

/// Prints warnings and, for a dry run, its effects. Returns whether it was a dry run.
fn print_change(response: &ChangeResponse, out: &mut dyn Write) -> io::Result<bool> {
    for warning in &response.warnings {
        eprintln!("warning: {}", printable(warning));
    }
    if response.dry_run {
        if response.edits.is_empty() {
            writeln!(out, "dry run: this is so already")?;
        }
        for edit in &response.edits {
            writeln!(out, "dry run: {}", printable(&edit.text))?;
        }
        for effect in &response.effects {
            writeln!(out, "  {}", admin::with_options(&printable(effect)))?;
        }
    }
    Ok(response.dry_run)
}

/// Prints problems without further text, so that an editor can jump to each.
fn report(file: &Path, problems: &[crate::config::Problem]) -> ExitCode {
    for problem in problems {
        eprintln!("{}", problem.in_file(file));
    }
    ExitCode::FAILURE
}

fn complete(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // The generator panics if a pipe is closed early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut script);
    out.write_all(&script)
}

fn reload(client: &Client, dry_run: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let answer = client.reload(dry_run)?;
    let prefix = if dry_run { "dry run: " } else { "" };
    for warning in answer.warnings {
        writeln!(out, "warning: {}", printable(&warning))?;
    }
    for change in &answer.changes {
        writeln!(out, "{prefix}{}", printable(change))?;
    }
    if dry_run {
        if answer.changes.is_empty() {
            writeln!(out, "dry run: nothing would change")?;
        }
        return Ok(());
    }
    let nothing = if answer.changes.is_empty() { ", nothing has changed" } else { "" };
    writeln!(out, "reloaded, version {}{nothing}", answer.version)?;
    Ok(())
}

fn algorithms(client: &Client, pool: Option<&str>, out: &mut dyn Write) -> anyhow::Result<()> {
    let answer = client.algorithms()?;
    let pools: Vec<_> = answer.pools.iter().filter(|of| pool.is_none_or(|pool| of.pool == pool)).collect();
    if let (Some(pool), []) = (pool, pools.as_slice()) {
        let names: Vec<_> = answer.pools.iter().map(|of| of.pool.as_str()).collect();
        anyhow::bail!("there is no pool \"{pool}\"; the pools are {}", names.join(", "));
    }
    for of in pools {
        writeln!(out, "{}: {}", of.pool, of.algorithm)?;
    }
    writeln!(out, "\nSwitch with `evenkeel algorithm NAME` to one of {}", answer.choices.join(", "))?;
    Ok(())
}

fn switch(
    client: &Client,
    to: Algorithm,
    pool: Option<&str>,
    args: ChangeArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let answer = client.switch_algorithm(to.as_str(), pool, args)?;
    if print_change(&answer.response, out)? {
        return Ok(());
    }
    for switch in answer.pools {
        match switch.previous == switch.current {
            true => writeln!(out, "{}: {} already", switch.pool, switch.current)?,
            false => writeln!(out, "{}: {} instead of {}", switch.pool, switch.current, switch.previous)?,
        }
    }
    Ok(())
}

fn add(
    client: &Client,
    pool: Option<&str>,
    backend: &Value,
    args: ChangeArgs,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let pool = match pool {
        Some(pool) => pool.to_owned(),
        None => admin::only_pool(&client.pools()?.pools)?,
    };
    changed(&pool, client.add_backend(&pool, backend, args)?, out)
}

fn changed(pool: &str, answer: admin::Changed, out: &mut dyn Write) -> anyhow::Result<()> {
    if !print_change(&answer.response, out)?
        && let Some(backend) = answer.backend
    {
        if answer.finished == Some(false) {
            anyhow::bail!("not drained: {}", undone(pool, &backend));
        }
        writeln!(out, "{}", summary(pool, &backend))?;
        killed(answer.killed, out)?;
    }
    Ok(())
}

/// Prints how many exchanges were killed at a deadline.
fn killed(count: Option<usize>, out: &mut dyn Write) -> io::Result<()> {
    match count {
        None => Ok(()),
        Some(0) => writeln!(out, "nothing was killed"),
        Some(n) => writeln!(out, "{} killed", counted(n, "exchange")),
    }
}

impl BackendArgument {
    fn change(&self, client: &Client, change: &Value, args: ChangeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let pool = self.pool(client)?;
        changed(&pool, client.change_backend(&pool, &self.address, change, args)?, out)
    }

    fn remove(&self, client: &Client, args: ChangeArgs, out: &mut dyn Write) -> anyhow::Result<()> {
        let pool = self.pool(client)?;
        let removal = client.remove_backend(&pool, &self.address, args)?;
        if print_change(&removal.response, out)? {
            return Ok(());
        }
        if removal.finished == Some(false) {
            let pools = client.pools()?.pools;
            let found = pools.iter().filter(|of| of.name == pool).flat_map(|of| &of.backends);
            // It may have been removed in the meantime, because of another deadline.
            if let Some(backend) = found.into_iter().find(|backend| backend.address == self.address) {
                anyhow::bail!("not removed: {}", undone(&pool, backend));
            }
        }
        match removal.in_flight {
            0 => writeln!(out, "{} is removed from pool {pool}", self.address)?,
            n => writeln!(out, "{} leaves pool {pool} with the last of {}", self.address, counted(n, "exchange"))?,
        }
        killed(removal.killed, out)?;
        Ok(())
    }

    fn kill(&self, client: &Client, dry_run: bool, out: &mut dyn Write) -> anyhow::Result<()> {
        let pool = self.pool(client)?;
        let answer = client.kill(&pool, &self.address, dry_run)?;
        match dry_run {
            true => {
                let open = counted(answer.in_flight, "exchange");
                writeln!(out, "dry run: {open} of {} in pool {pool} would be killed", self.address)?;
            }
            false => killed(Some(answer.killed), out)?,
        }
        for warning in &answer.warnings {
            writeln!(out, "warning: {}", printable(warning))?;
        }
        Ok(())
    }

    fn pool(&self, client: &Client) -> anyhow::Result<String> {
        match &self.pool {
            Some(pool) => Ok(pool.clone()),
            None => Ok(admin::pool_with(&client.pools()?.pools, &self.address)?),
        }
    }
}

fn summary(pool: &str, backend: &admin::Backend) -> String {
    let in_flight = match backend.in_flight {
        0 => "nothing".to_owned(),
        n => n.to_string(),
    };
    let mut text = format!(
        "{} in pool {pool}: {}, weight {}, {in_flight} in flight",
        backend.address, backend.status, backend.weight
    );
    if let Some(max) = backend.max_connections {
        text.push_str(&format!(", {max} at most"));
    }
    if let Some(left) = kill_after(backend) {
        text.push_str(&format!(", killed in {}", status::duration(left)));
    }
    if let Some(left) = backend.grace_seconds {
        text.push_str(&format!(", takes its sticky clients for another {}", status::duration(left)));
    }
    text
}

/// The time in seconds until exchanges in flight are killed, if there is a deadline.
fn kill_after(backend: &admin::Backend) -> Option<f64> {
    backend.deadline_seconds.filter(|_| backend.in_flight > 0 || backend.grace_seconds.is_some())
}

/// Why a deadline was not waited for.
fn undone(pool: &str, backend: &admin::Backend) -> String {
    let address = &backend.address;
    match backend.status.as_str() {
        "draining" | "down" | "removing" => {
            format!("{address} in pool {pool} is {} with another deadline or none", backend.status)
        }
        _ => format!("{address} in pool {pool} is active again"),
    }
}

fn counted(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// Colours are for interactive terminals, unless turned off (no-color.org).
fn wants_colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn read_token(file: &Path) -> anyhow::Result<String> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("the token file {} cannot be read", file.display()))?;
    let token = text.trim_end_matches(['\r', '\n']);
    let fits_header = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    anyhow::ensure!(
        fits_header,
        "the token file {} must hold one line of letters, digits and punctuation",
        file.display()
    );
    Ok(token.to_owned())
}
