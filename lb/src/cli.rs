//! The command line: runs a balancer, checks a configuration, and asks or tells a running balancer over its admin
//! API. What runs a balancer comes in as an argument, so that all the rest can be tried without one.

mod admin;
mod status;
#[cfg(test)]
mod tests;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::json;

use crate::config::algorithm::Algorithm;
use crate::config::toml;
use admin::{AdminUrl, Client};

const DEFAULT_FILE: &str = "evenkeel.toml";

const EXAMPLES: &str = "\
Examples:
  evenkeel config --default > evenkeel.toml    begin with every setting, explained
  evenkeel check                               every problem, with line, column and a fix
  evenkeel run                                 balance
  evenkeel status --watch                      what each backend does, every second
  evenkeel algorithm least-connections         switch every pool, without losing a request
  evenkeel drain web1:8888                     finish what it has, take nothing new
  evenkeel reload                              read the configuration again

Exit codes:
  0  done
  1  failed, or the configuration has problems
  2  the command line was not understood";

/// A load balancer that changes while it runs
///
/// `run` is the balancer. `check`, `config` and `completions` look at files only; every other command asks or tells a
/// balancer that runs, over its admin API.
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
    /// Where its admin API listens
    #[arg(long, value_name = "URL", global = true, env = "EVENKEEL_ADMIN", default_value = "http://127.0.0.1:8889")]
    admin: AdminUrl,
    /// File with its admin token, if it wants one
    #[arg(long, value_name = "FILE", global = true, env = "EVENKEEL_TOKEN_FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a balancer until SIGTERM or Ctrl-C
    ///
    /// SIGHUP reads the configuration again, SIGUSR1 opens the access log again, SIGTERM finishes what is in flight.
    Run {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "EVENKEEL_CONFIG", default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Report every problem of a configuration, as FILE:LINE:COLUMN: message
    Check {
        /// The configuration file
        #[arg(env = "EVENKEEL_CONFIG", default_value = DEFAULT_FILE)]
        file: PathBuf,
    },
    /// Print a configuration: the file's with all defaults, as JSON
    Config {
        /// The configuration file
        #[arg(long, value_name = "FILE", env = "EVENKEEL_CONFIG", default_value = DEFAULT_FILE)]
        config: PathBuf,
        /// Print every setting with its default and an explanation instead, as TOML to begin with
        #[arg(long)]
        default: bool,
        /// Print what is in force in the running balancer instead, runtime changes included
        #[arg(long, conflicts_with = "default")]
        running: bool,
    },
    /// Print a script that completes this command line in a shell
    ///
    /// For example, in ~/.bashrc: source <(evenkeel completions bash)
    Completions { shell: Shell },
    /// Read the configuration file again
    Reload,
    /// Show every pool and backend
    Status {
        /// Again every second, with requests per second and shares, until Ctrl-C
        #[arg(long, short)]
        watch: bool,
        /// As JSON, one line each time
        #[arg(long)]
        json: bool,
    },
    /// Show the algorithms, or switch to another
    Algorithm {
        #[arg(value_parser = PossibleValuesParser::new(Algorithm::ALL.map(Algorithm::as_str)))]
        name: Option<String>,
        /// Only this pool, not all
        #[arg(long)]
        pool: Option<String>,
    },
    /// Let a backend finish what it has and give it nothing new
    Drain {
        #[command(flatten)]
        backend: BackendArgument,
    },
    /// Give a drained backend traffic again
    Undrain {
        #[command(flatten)]
        backend: BackendArgument,
    },
    /// Change a backend's share of the traffic
    Weight {
        #[command(flatten)]
        backend: BackendArgument,
        /// 1 to 1000
        weight: u32,
    },
    /// Add or remove a backend
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Succeed if the balancer is ready for traffic
    Health,
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
    },
    /// Remove a backend as soon as it has finished what it has
    Remove {
        #[command(flatten)]
        backend: BackendArgument,
    },
}

/// Does what the command line says. `run` runs a balancer with the configuration at a path until it is told to stop.
pub fn main(run: impl FnOnce(&Path) -> anyhow::Result<()>) -> ExitCode {
    match Cli::parse().execute(run, &mut io::stdout()) {
        Ok(code) => code,
        // Whoever reads our output has seen enough.
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
            Command::Check { file } => return check(&file, out),
            Command::Config { default: true, .. } => out.write_all(toml::DEFAULT.as_bytes())?,
            Command::Config { running: true, .. } => writeln!(out, "{:#}", client()?.get("/admin/config")?)?,
            Command::Config { config, .. } => return print_config(&config, out),
            Command::Completions { shell } => complete(shell, out)?,
            Command::Reload => reload(&client()?, out)?,
            Command::Status { watch: true, json } => status::watch(&client()?, json, out)?,
            Command::Status { json: true, .. } => writeln!(out, "{}", client()?.get("/admin/pools")?)?,
            Command::Status { .. } => status::print(&client()?, out)?,
            Command::Algorithm { name: None, pool } => algorithms(&client()?, pool.as_deref(), out)?,
            Command::Algorithm { name: Some(name), pool } => switch(&client()?, &name, pool.as_deref(), out)?,
            Command::Drain { backend } => backend.change(&client()?, &json!({ "state": "draining" }), out)?,
            Command::Undrain { backend } => backend.change(&client()?, &json!({ "state": "active" }), out)?,
            Command::Weight { backend, weight } => backend.change(&client()?, &json!({ "weight": weight }), out)?,
            Command::Backend(BackendCommand::Add { address, pool, weight }) => {
                add(&client()?, &address, pool.as_deref(), weight, out)?;
            }
            Command::Backend(BackendCommand::Remove { backend }) => backend.remove(&client()?, out)?,
            Command::Health => writeln!(out, "{}", client()?.ready()?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn check(file: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let config = match toml::load(file) {
        Ok(config) => config,
        Err(problems) => return Ok(report(file, &problems)),
    };
    let backends = config.pools.iter().map(|pool| pool.backends.len()).sum();
    let counts = [
        counted(config.listeners.len(), "listener"),
        counted(config.pools.len(), "pool"),
        counted(backends, "backend"),
        counted(config.routes.len(), "route"),
    ];
    writeln!(out, "{}: ok ({})", file.display(), counts.join(", "))?;
    Ok(ExitCode::SUCCESS)
}

fn print_config(file: &Path, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    match toml::load(file) {
        Ok(config) => writeln!(out, "{}", serde_json::to_string_pretty(&config)?)?,
        Err(problems) => return Ok(report(file, &problems)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Problems are what a failed check is asked for, so they come bare: an editor can jump to each.
fn report(file: &Path, problems: &[crate::config::Problem]) -> ExitCode {
    for problem in problems {
        eprintln!("{}", problem.in_file(file));
    }
    ExitCode::FAILURE
}

fn complete(shell: Shell, out: &mut dyn Write) -> io::Result<()> {
    // The generator panics where a pipe is closed early.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "evenkeel", &mut script);
    out.write_all(&script)
}

fn reload(client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
    let answer = client.reload()?;
    for warning in answer.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    writeln!(out, "reloaded, version {}", answer.version)?;
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

fn switch(client: &Client, name: &str, pool: Option<&str>, out: &mut dyn Write) -> anyhow::Result<()> {
    for switch in client.switch_algorithm(name, pool)?.pools {
        match switch.previous == switch.current {
            true => writeln!(out, "{}: {} already", switch.pool, switch.current)?,
            false => writeln!(out, "{}: {} instead of {}", switch.pool, switch.current, switch.previous)?,
        }
    }
    Ok(())
}

fn add(client: &Client, address: &str, pool: Option<&str>, weight: u32, out: &mut dyn Write) -> anyhow::Result<()> {
    let pool = match pool {
        Some(pool) => pool.to_owned(),
        None => admin::only_pool(&client.pools()?.pools)?,
    };
    let backend = client.add_backend(&pool, address, weight)?;
    writeln!(out, "{}", summary(&pool, &backend))?;
    Ok(())
}

impl BackendArgument {
    fn change(&self, client: &Client, change: &serde_json::Value, out: &mut dyn Write) -> anyhow::Result<()> {
        let pool = self.pool(client)?;
        let backend = client.change_backend(&pool, &self.address, change)?;
        writeln!(out, "{}", summary(&pool, &backend))?;
        Ok(())
    }

    fn remove(&self, client: &Client, out: &mut dyn Write) -> anyhow::Result<()> {
        let pool = self.pool(client)?;
        let removal = client.remove_backend(&pool, &self.address)?;
        match removal.in_flight {
            0 => writeln!(out, "{} is removed from pool {pool}", self.address)?,
            n => writeln!(out, "{} leaves pool {pool} with the last of {}", self.address, counted(n, "exchange"))?,
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
    format!("{} in pool {pool}: {}, weight {}, {in_flight} in flight", backend.address, backend.status, backend.weight)
}

fn counted(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// Colours are for people at a terminal who have not opted out (no-color.org).
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
