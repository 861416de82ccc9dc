//! Command-line flags and environment variables, and the settings made from them.

pub mod stores;

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use self::stores::StoreArgs;
pub use self::stores::{Address, Secret};
use crate::demo::DemoArgs;
use crate::health::HealthArgs;
use crate::passwords::Cost;
use crate::sessions::{self, Lifetimes};
use crate::{attempts, media};

/// The web application that Evenkeel balances.
///
/// Run `app demo` to see a balancer and three instances at work on this machine. Run `app serve` for one instance:
/// several with the same --data-dir share accounts, sessions, posts and pictures.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// What is logged to standard error: a level (error, warn, info, debug), or levels per module
    #[arg(long, env = "APP_LOG", default_value = "info", global = true)]
    pub log: String,
    /// How log lines look
    #[arg(long, env = "APP_LOG_FORMAT", default_value = "text", global = true)]
    pub log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one instance of the application
    Serve(Box<ServeArgs>),
    /// Run a balancer and three instances on this machine, each a process of its own
    Demo(DemoArgs),
    /// Succeed if an instance is well: for health checks of containers that have no other program
    Health(HealthArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// The flags of one instance.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address and port to listen on; port 0 takes any free one
    #[arg(long, env = "APP_LISTEN", default_value = "127.0.0.1:9001", value_name = "ADDRESS:PORT")]
    pub listen: SocketAddr,
    /// Name of this instance, shown on its pages [default: the host's name]
    #[arg(long, env = "APP_NAME")]
    pub name: Option<InstanceName>,
    /// Networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, separated by commas; a client
    /// is the rightmost address in X-Forwarded-For that is in none of them
    #[arg(
        long,
        env = "APP_TRUSTED_PROXIES",
        default_value = "127.0.0.0/8,::1/128",
        value_delimiter = ',',
        value_name = "NETWORK"
    )]
    pub trusted_proxies: Vec<Network>,
    /// Whether cookies are Secure: auto follows X-Forwarded-Proto from trusted proxies
    #[arg(long, env = "APP_SECURE_COOKIES", default_value = "auto")]
    pub secure_cookies: SecureCookies,
    /// How long a member stays logged in after the last visit
    #[arg(long, env = "APP_SESSION_LIFETIME", default_value = "14d", value_parser = duration, value_name = "TIME")]
    pub session_lifetime: Duration,
    /// How long a visitor who is not logged in is remembered
    #[arg(long, env = "APP_VISITOR_LIFETIME", default_value = "2h", value_parser = duration, value_name = "TIME")]
    pub visitor_lifetime: Duration,
    /// Sessions of one member at once; with one more, the one goes that was not used for longest (1 to 1000)
    #[arg(long, env = "APP_SESSIONS_PER_MEMBER", default_value_t = 10, value_name = "COUNT")]
    pub sessions_per_member: usize,
    /// Logins that may fail on one account from one address (of IPv6: /64) or from one browser that has logged in
    /// before, within --login-window; further ones are answered 429 without a look at the password (1 to 100000)
    #[arg(long, env = "APP_LOGIN_FAILURES", default_value_t = 10, value_name = "COUNT")]
    pub login_failures: u32,
    /// Logins that may fail on one account from all addresses together; beyond it each address has one attempt left,
    /// and browsers that have logged in before are not concerned (1 to 100000)
    #[arg(long, env = "APP_LOGIN_FAILURES_PER_ACCOUNT", default_value_t = 25, value_name = "COUNT")]
    pub login_failures_per_account: u32,
    /// Logins that may fail from one address on all accounts together (1 to 100000)
    #[arg(long, env = "APP_LOGIN_FAILURES_PER_ADDRESS", default_value_t = 100, value_name = "COUNT")]
    pub login_failures_per_address: u32,
    /// Accounts that may be asked for from one address (of IPv6: /64) within --login-window, those whose name was taken
    /// included; further ones are answered 429 (1 to 100000)
    #[arg(long, env = "APP_SIGNUPS_PER_ADDRESS", default_value_t = 100, value_name = "COUNT")]
    pub signups_per_address: u32,
    /// How long failed logins and accounts asked for count, from the first one on
    #[arg(long, env = "APP_LOGIN_WINDOW", default_value = "15min", value_parser = duration, value_name = "TIME")]
    pub login_window: Duration,
    /// Largest picture, in bytes
    #[arg(long, env = "APP_MAX_PICTURE_BYTES", default_value_t = 5 * 1024 * 1024, value_name = "BYTES")]
    pub max_picture_bytes: u64,
    /// Largest picture, in pixels (width times height); checking one takes 3 to 16 bytes of memory per pixel, one at a
    /// time
    #[arg(long, env = "APP_MAX_PICTURE_PIXELS", default_value_t = 24_000_000, value_name = "PIXELS")]
    pub max_picture_pixels: u64,
    /// Memory for one password hash (argon2id), in KiB; at least 7168, and 35840 when multiplied by the passes
    #[arg(long, env = "APP_PASSWORD_MEMORY_KIB", default_value_t = 19_456, value_name = "KIB")]
    pub password_memory_kib: u32,
    /// Passes over that memory
    #[arg(long, env = "APP_PASSWORD_PASSES", default_value_t = 2, value_name = "COUNT")]
    pub password_passes: u32,
    /// Passwords checked at the same time, beside one that is hashed for a sign-up; more wait up to 5 s
    #[arg(long, env = "APP_PASSWORD_JOBS", default_value_t = 2, value_name = "COUNT")]
    pub password_jobs: usize,
    /// For tests: hash passwords with hardly any work; refused unless listening on loopback
    #[arg(long, env = "APP_TRIVIAL_PASSWORDS", hide = true)]
    pub trivial_passwords: bool,
    /// Time for a request's headers to arrive, idle time between requests included; keep it above the balancer's
    #[arg(long, env = "APP_HEADER_TIMEOUT", default_value = "75s", value_parser = duration, value_name = "TIME")]
    pub header_timeout: Duration,
    /// Time to answer a request, its body included
    #[arg(long, env = "APP_REQUEST_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub request_timeout: Duration,
    /// The same for a post with a picture
    #[arg(long, env = "APP_UPLOAD_TIMEOUT", default_value = "2min", value_parser = duration, value_name = "TIME")]
    pub upload_timeout: Duration,
    /// Time that a client may take no part of an answer before its connection is ended
    #[arg(long, env = "APP_WRITE_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub write_timeout: Duration,
    /// Connections open at once; more wait to be accepted
    #[arg(long, env = "APP_MAX_CONNECTIONS", default_value_t = 10_000, value_name = "COUNT")]
    pub max_connections: usize,
    /// Time between the announcement of a stop by /readyz and /healthz (503) and the last connection accepted, on
    /// SIGTERM: longer than the balancer takes to notice, that is its interval between probes times the failures it
    /// waits for; SIGINT skips it; 0s: none
    #[arg(long, env = "APP_SHUTDOWN_DELAY", default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub shutdown_delay: Duration,
    /// The instances of this site as HOST:PORT, separated by commas; this one may be among them. One that has lost a
    /// store says so at /readyz (503) only if one of them has not; without any it never does
    #[arg(long, env = "APP_PEERS", value_delimiter = ',', value_name = "HOST:PORT")]
    pub peers: Vec<Address>,
    /// Time that requests in flight get to finish after that
    #[arg(long, env = "APP_SHUTDOWN_DEADLINE", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub shutdown_deadline: Duration,
    #[command(flatten)]
    pub stores: StoreArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SecureCookies {
    Auto,
    Always,
    Never,
}

/// The settings of one instance.
#[derive(Debug, Clone)]
pub struct Settings {
    pub trusted_proxies: Vec<IpNet>,
    pub secure_cookies: SecureCookies,
    pub sessions: sessions::Limits,
    pub attempts: attempts::Limits,
    pub pictures: media::Limits,
    pub password_cost: Cost,
    pub password_jobs: usize,
    pub header_timeout: Duration,
    pub request_timeout: Duration,
    pub upload_timeout: Duration,
    pub write_timeout: Duration,
    pub max_connections: usize,
    pub peers: Vec<Address>,
    pub shutdown_delay: Duration,
    pub shutdown_deadline: Duration,
}

impl Default for Settings {
    /// The defaults of the flags.
    fn default() -> Self {
        let Cli { command: Command::Serve(args), .. } = Cli::parse_from(["app", "serve"]) else {
            unreachable!("the command line is ours");
        };
        args.settings().expect("the defaults are valid")
    }
}

impl ServeArgs {
    /// Checks combinations of flags.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let cost = Cost { memory_kib: self.password_memory_kib, passes: self.password_passes };
        anyhow::ensure!(
            cost.is_enough(),
            "--password-memory-kib {} with --password-passes {} is too easy to guess: take at least {} KiB, and {} \
             when multiplied by the passes, such as 19456 and 2",
            cost.memory_kib,
            cost.passes,
            Cost::FLOOR_MEMORY_KIB,
            Cost::FLOOR_KIB_PASSES,
        );
        anyhow::ensure!(
            !self.trivial_passwords || self.listen.ip().is_loopback(),
            "--trivial-passwords is for tests: listen on 127.0.0.1 or leave it out, not on {}",
            self.listen,
        );
        for (flag, count) in [("--password-jobs", self.password_jobs), ("--max-connections", self.max_connections)] {
            anyhow::ensure!((1..=1_000_000).contains(&count), "{flag} {count} is out of range: take 1 to 1000000");
        }
        anyhow::ensure!(
            (1..=1_000).contains(&self.sessions_per_member),
            "--sessions-per-member {} is out of range: take 1 to 1000",
            self.sessions_per_member,
        );
        for (flag, count) in [
            ("--login-failures", self.login_failures),
            ("--login-failures-per-account", self.login_failures_per_account),
            ("--login-failures-per-address", self.login_failures_per_address),
            ("--signups-per-address", self.signups_per_address),
        ] {
            anyhow::ensure!((1..=100_000).contains(&count), "{flag} {count} is out of range: take 1 to 100000");
        }
        anyhow::ensure!(
            (1_024..=1 << 30).contains(&self.max_picture_bytes),
            "--max-picture-bytes {} is out of range: take 1024 to {}",
            self.max_picture_bytes,
            1 << 30,
        );
        anyhow::ensure!(
            (1..=500_000_000).contains(&self.max_picture_pixels),
            "--max-picture-pixels {} is out of range: take 1 to 500000000",
            self.max_picture_pixels,
        );
        for (flag, time) in [
            ("--session-lifetime", self.session_lifetime),
            ("--visitor-lifetime", self.visitor_lifetime),
            ("--login-window", self.login_window),
            ("--header-timeout", self.header_timeout),
            ("--request-timeout", self.request_timeout),
            ("--upload-timeout", self.upload_timeout),
            ("--write-timeout", self.write_timeout),
        ] {
            check_range(flag, time, Duration::from_secs(366 * 24 * 3600))?;
        }
        for (flag, time) in [("--shutdown-delay", self.shutdown_delay), ("--shutdown-deadline", self.shutdown_deadline)]
        {
            anyhow::ensure!(
                time <= MAX_SHUTDOWN_TIMEOUT,
                "{flag} {} is out of range: take 0s to {}",
                humantime::format_duration(time),
                humantime::format_duration(MAX_SHUTDOWN_TIMEOUT),
            );
        }
        Ok(Settings {
            trusted_proxies: self.trusted_proxies.iter().map(|network| network.0).collect(),
            secure_cookies: self.secure_cookies,
            sessions: sessions::Limits {
                lifetimes: Lifetimes { member: self.session_lifetime, visitor: self.visitor_lifetime },
                sessions_per_member: self.sessions_per_member,
            },
            attempts: attempts::Limits {
                window: self.login_window,
                together: self.login_failures,
                per_account: self.login_failures_per_account,
                per_address: self.login_failures_per_address,
                signups: self.signups_per_address,
            },
            pictures: media::Limits { bytes: self.max_picture_bytes, pixels: self.max_picture_pixels },
            password_cost: if self.trivial_passwords { Cost::TRIVIAL } else { cost },
            password_jobs: self.password_jobs,
            header_timeout: self.header_timeout,
            request_timeout: self.request_timeout,
            upload_timeout: self.upload_timeout,
            write_timeout: self.write_timeout,
            max_connections: self.max_connections,
            peers: self.peers.clone(),
            shutdown_delay: self.shutdown_delay,
            shutdown_deadline: self.shutdown_deadline,
        })
    }

    /// The configured name, or the host's.
    pub fn instance(&self) -> anyhow::Result<Instance> {
        let name = match &self.name {
            Some(name) => name.clone(),
            None => {
                let host = nix::unistd::gethostname()?.to_string_lossy().into_owned();
                host.parse().map_err(|error| {
                    anyhow::anyhow!("the host's name {host:?} cannot name the instance ({error}): set --name")
                })?
            }
        };
        Ok(Instance::new(name))
    }
}

/// One of several instances, with its colour.
#[derive(Debug, Clone)]
pub struct Instance {
    pub name: String,
    pub tint: Colour,
}

impl Instance {
    pub fn new(name: InstanceName) -> Self {
        Self { tint: Colour::of(&name.0), name: name.0 }
    }
}

/// 1 to 63 letters, digits, dots, dashes and underscores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceName(String);

impl FromStr for InstanceName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        if (1..=63).contains(&text.len()) && text.bytes().all(fit) {
            Ok(Self(text.to_owned()))
        } else {
            Err("take 1 to 63 letters, digits, dots, dashes and underscores, such as web1")
        }
    }
}

/// One of the colours that distinguish instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour(usize);

impl Colour {
    /// As in the style sheet, where each is a class.
    pub const COLOURS: [&str; 6] = ["#1d5fd1", "#b4430a", "#0b7350", "#7436cf", "#ae2167", "#0d6e85"];

    /// Chosen by the number at the end of the name, so that neighbours differ, else by its letters. Every instance gets
    /// the same colour for the same name.
    pub fn of(name: &str) -> Self {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let number = name[name.len() - digits..].bytes().fold(0, |n, b| (10 * n + usize::from(b - b'0')) % 6_000_000);
        let letters = || name.bytes().fold(0, |n, b| (31 * n + usize::from(b)) % 6_000_011);
        Self(if digits > 0 { (number + 5) % 6 } else { letters() % 6 })
    }

    /// From 1 on.
    pub fn number(self) -> usize {
        self.0 + 1
    }

    pub fn class(self) -> String {
        format!("tint-{}", self.number())
    }
}

/// A network in CIDR notation, or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl FromStr for Network {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        text.parse()
            .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
            .map(Self)
            .map_err(|_| "take an address or a network, such as 10.0.0.0/8")
    }
}

/// Refuses zero, and a time longer than `longest`.
fn check_range(flag: &str, time: Duration, longest: Duration) -> anyhow::Result<()> {
    anyhow::ensure!(
        (Duration::from_millis(1)..=longest).contains(&time),
        "{flag} {} is out of range: take 1ms to {}",
        humantime::format_duration(time),
        humantime::format_duration(longest),
    );
    Ok(())
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}; take a number with a unit, such as 30s, 2h or 14d"))
}

/// The process that stops an instance waits for it.
const MAX_SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(flags: &[&str]) -> anyhow::Result<Settings> {
        let cli = Cli::try_parse_from(["app", "serve"].iter().chain(flags))?;
        let Command::Serve(args) = cli.command else { unreachable!() };
        args.settings()
    }

    #[test]
    fn the_three_demo_instances_have_three_colours() {
        let tints = ["web1", "web2", "web3"].map(|name| Colour::of(name).number());
        assert_eq!(tints, [1, 2, 3]);
        assert_eq!(
            Colour::of("web99999999999999999999999999").number(),
            Colour::of("web99999999999999999999999999").number()
        );
    }

    #[test]
    fn a_bad_setting_names_key_value_and_fix() {
        for (flags, words) in [
            (&["--password-memory-kib", "1024"][..], &["--password-memory-kib", "1024", "19456"][..]),
            (&["--session-lifetime", "soon"], &["--session-lifetime", "soon", "14d"]),
            (&["--trusted-proxies", "everyone"], &["--trusted-proxies", "everyone", "10.0.0.0/8"]),
            (&["--trivial-passwords", "--listen", "0.0.0.0:80"], &["--trivial-passwords", "0.0.0.0:80", "127.0.0.1"]),
            (&["--name", "web 1"], &["--name", "web 1", "such as web1"]),
            (&["--sessions-per-member", "0"], &["--sessions-per-member", "0", "1 to 1000"]),
            (&["--login-failures", "0"], &["--login-failures", "0", "1 to 100000"]),
            (&["--max-connections", "0"], &["--max-connections", "0", "1 to"]),
            (&["--request-timeout", "0s"], &["--request-timeout", "0s", "1ms"]),
            (&["--shutdown-delay", "2h"], &["--shutdown-delay", "2h", "0s to 1h"]),
        ] {
            let error = parse(flags).unwrap_err().to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{flags:?}: {error}");
        }
    }

    #[test]
    fn proxies_are_networks_or_addresses() {
        let settings = parse(&["--trusted-proxies", "10.1.0.0/16, 192.0.2.7"]).unwrap();
        assert_eq!(settings.trusted_proxies, ["10.1.0.0/16".parse().unwrap(), "192.0.2.7/32".parse().unwrap()]);
    }
}
