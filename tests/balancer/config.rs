//! The command line checks and explains configurations.

use tempfile::TempDir;
use tests::{Balancer, Config, Origin, evenkeel};

/// All kinds of problems at once, each with its line and a word of its message.
const WRONG: &str = "\
[server]
threads = \"many\"
colour = \"red\"

[[listener]]
address = \"localhost\"
header_timeout = \"10\"

[admin]
address = \"0.0.0.0:8889\"

[[pool]]
name = \"app\"
algorithm = \"fastest\"
backends = [
    { address = \"web1\" },
    { address = \"web2:80\", weight = 0 },
    { address = \"web3:80\", state = \"asleep\" },
    { address = \"web4:80\" },
    { address = \"web4:80\" },
]

[pool.probe]
interval = \"1s\"
timeout = \"2s\"
status = \"2xx\"

[[pool]]
name = \"app\"
backends = []

[[route]]
path = \"nowhere\"
pool = \"else\"
";

const PROBLEMS: [(usize, &str); 15] = [
    (2, "threads"),
    (3, "colour"),
    (6, "localhost"),
    (7, "header_timeout"),
    (10, "token_file"),
    (14, "fastest"),
    (16, "web1"),
    (17, "weight"),
    (18, "asleep"),
    (20, "web4:80"),
    (25, "timeout"),
    (26, "2xx"),
    (29, "app"),
    (33, "nowhere"),
    (34, "else"),
];

#[tokio::test]
async fn check_reports_every_problem_with_its_position() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("wrong.toml");
    std::fs::write(&file, WRONG).expect("a writable directory");
    let outcome = evenkeel(["check".as_ref(), file.as_os_str()]).await;
    assert!(!outcome.status.success());
    let report = format!("{}{}", outcome.stdout, outcome.stderr);
    for (line, word) in PROBLEMS {
        let line_number = format!(":{line}:");
        let is_reported = report
            .lines()
            .any(|line| line.contains("wrong.toml") && line.contains(&line_number) && line.contains(word));
        assert!(is_reported, "line {line}, {word}, in\n{report}");
    }
}

#[tokio::test]
async fn an_unknown_algorithm_is_answered_with_the_valid_ones() {
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("wrong.toml");
    std::fs::write(&file, WRONG).expect("a writable directory");
    let outcome = evenkeel(["check".as_ref(), file.as_os_str()]).await;
    let report = format!("{}{}", outcome.stdout, outcome.stderr);
    let problem = report.lines().find(|line| line.contains("fastest")).expect("the problem");
    for choice in ["round-robin", "weighted", "least-connections", "ip-hash"] {
        assert!(problem.contains(choice), "{problem}");
    }
}

#[tokio::test]
async fn run_reports_the_same_problems_and_does_not_start() {
    let a = Origin::start("a").await;
    let mut balancer = Balancer::prepare(&Config::of([&a]));
    balancer.write(WRONG);
    balancer.launch();
    let status = balancer.process().end().await;
    assert!(!status.success());
    let log = balancer.log();
    for (_, word) in PROBLEMS {
        assert!(log.contains(word), "{word} in\n{log}");
    }
}

#[tokio::test]
async fn check_accepts_a_valid_file() {
    let a = Origin::start("a").await;
    let balancer = Balancer::prepare(&Config::of([&a]));
    let outcome = evenkeel(["check".as_ref(), balancer.config_file().as_os_str()]).await;
    assert!(outcome.status.success(), "{outcome:?}");
}

#[tokio::test]
async fn the_printed_defaults_are_a_valid_file() {
    let printed = evenkeel(["config", "--default"]).await;
    assert!(printed.status.success(), "{printed:?}");
    assert!(printed.stdout.contains("[[listener]]") && printed.stdout.contains('#'), "{}", printed.stdout);
    let directory = TempDir::new().expect("a temporary directory");
    let file = directory.path().join("evenkeel.toml");
    std::fs::write(&file, &printed.stdout).expect("a writable directory");
    let outcome = evenkeel(["check".as_ref(), file.as_os_str()]).await;
    assert!(outcome.status.success(), "{outcome:?}");
}

#[tokio::test]
async fn a_missing_file_is_named() {
    for command in [&["check", "/nowhere/evenkeel.toml"][..], &["run", "--config", "/nowhere/evenkeel.toml"]] {
        let outcome = evenkeel(command).await;
        assert!(!outcome.status.success());
        assert!(outcome.stderr.contains("/nowhere/evenkeel.toml"), "{outcome:?}");
    }
}

#[tokio::test]
async fn help_explains_the_commands() {
    let help = evenkeel(["--help"]).await;
    assert!(help.status.success());
    for command in ["run", "check", "config", "status", "algorithm", "drain", "undrain", "weight", "completions"] {
        assert!(help.stdout.contains(command), "{command} in\n{}", help.stdout);
    }
    let version = evenkeel(["--version"]).await;
    assert!(version.status.success() && version.stdout.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    for shell in ["bash", "zsh", "fish"] {
        let script = evenkeel(["completions", shell]).await;
        assert!(script.status.success() && script.stdout.contains("evenkeel"), "{shell}: {script:?}");
    }
    let unknown = evenkeel(["dance"]).await;
    assert!(!unknown.status.success() && unknown.stderr.contains("dance"), "{unknown:?}");
}
