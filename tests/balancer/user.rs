//! A process that is started as root and switches to another user.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use tests::balancer::program;
use tests::process::Process;
use tests::{Balancer, Config, Origin, Request, Wire, evenkeel, eventually};

/// `nobody` and its group on Debian.
const NOBODY: u32 = 65534;

fn is_root() -> bool {
    let is_root = Uid::effective().is_root();
    if !is_root {
        println!("NOT RUN: only root can become another user. Run the tests as root to run this one.");
    }
    is_root
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("our file");
}

/// A folder that belongs to `nobody`.
fn own_folder(path: &Path) {
    fs::create_dir(path).expect("our folder");
    chown(path, Some(NOBODY), Some(NOBODY)).expect("we are root");
}

/// The values of this name in `/proc` for each thread of a process.
fn of_threads(process: u32, name: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("a process");
    let status = |task: std::io::Result<fs::DirEntry>| fs::read_to_string(task.ok()?.path().join("status")).ok();
    let statuses: Vec<String> = tasks.filter_map(status).collect();
    let line = |status: &String| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.expect("a line of this name").split_whitespace().collect::<Vec<_>>().join(" ")
    };
    statuses.iter().map(line).collect()
}

/// An unused address of this machine with a port that only root may bind.
fn low_address() -> SocketAddr {
    let addresses = (400..1000).map(|port| SocketAddr::from(([127, 0, 0, 73], port)));
    let mut free = addresses.filter(|address| std::net::TcpListener::bind(address).is_ok());
    free.next().expect("a free port below 1024")
}

fn listener(address: impl std::fmt::Display) -> String {
    format!("[[listener]]\naddress = \"{address}\"\n")
}

const USER: &str = "user = \"nobody\"";
const FILES: &str = "[state]\nfile = \"own/evenkeel.state.json\"\n[log]\nfile = \"logs/evenkeel.log\"\n\
    [access_log]\nfile = \"logs/access.log\"\n";

/// A balancer whose folder everybody may search.
fn prepare(config: &Config) -> Balancer {
    let balancer = Balancer::prepare(config);
    set_mode(&balancer.file(""), 0o755);
    balancer
}

#[tokio::test]
async fn every_thread_becomes_the_user_and_keeps_only_the_right_to_low_ports() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let low = low_address();
    let sections = |listeners: &str| format!("{listeners}{FILES}");
    let first = listener(low) + &listener("unix:run/web.sock");
    let config = |listeners: &str| Config::of([&a]).server(USER).section(&sections(listeners));
    let mut balancer = prepare(&config(&first));
    own_folder(&balancer.file("own"));
    // Only root can write there.
    for folder in ["logs", "run"] {
        fs::create_dir(balancer.file(folder)).expect("our folder");
        set_mode(&balancer.file(folder), 0o755);
    }
    balancer.launch();
    balancer.ready().await;
    let process = balancer.process().id();
    let threads = of_threads(process, "Uid");
    assert!(threads.len() > 3, "{threads:?}");
    for (name, expected) in [
        ("Uid", "65534 65534 65534 65534"),
        ("Gid", "65534 65534 65534 65534"),
        ("Groups", "65534"),
        // CAP_NET_BIND_SERVICE is bit 10.
        ("CapEff", "0000000000000400"),
        ("CapPrm", "0000000000000400"),
        ("CapInh", "0000000000000000"),
        ("CapAmb", "0000000000000000"),
        ("NoNewPrivs", "1"),
    ] {
        let values = of_threads(process, name);
        assert!(values.iter().all(|value| value == expected), "{name}: {values:?}");
    }
    assert_eq!(Wire::connect(low).await.exchange(&Request::get("/")).await.status, 200);
    assert_eq!(balancer.get("/").await.status, 200);
    for (file, mode) in [("logs/evenkeel.log", None), ("logs/access.log", None), ("run/web.sock", Some(0o660))] {
        let file = fs::metadata(balancer.file(file)).expect("it was made");
        assert_eq!((file.uid(), file.gid()), (NOBODY, NOBODY));
        assert!(mode.is_none_or(|mode| file.mode() & 0o777 == mode));
    }
    let log = async || fs::read_to_string(balancer.file("logs/evenkeel.log")).unwrap_or_default();
    let message = "the process has become user nobody: it may still bind ports below 1024";
    eventually("its user is logged", async || log().await.contains(message)).await;
    // A reload opens a low port, a change is saved, and logs are reopened.
    let next = low_address();
    balancer.configure(&config(&(first.clone() + &listener(next))));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(Wire::connect(next).await.exchange(&Request::get("/")).await.status, 200);
    balancer.switch_algorithm("least-connections").await;
    eventually("the change is kept", async || balancer.file("own/evenkeel.state.json").exists()).await;
    assert_eq!(fs::metadata(balancer.file("own/evenkeel.state.json")).expect("it was made").uid(), NOBODY);
    // As logrotate does with `create 0640 nobody nogroup`.
    fs::rename(balancer.file("logs/access.log"), balancer.file("logs/access.log.1")).expect("our file");
    fs::write(balancer.file("logs/access.log"), "").expect("our folder");
    chown(balancer.file("logs/access.log"), Some(NOBODY), Some(NOBODY)).expect("we are root");
    balancer.signal(Signal::SIGUSR1);
    eventually("lines go to the new file", async || {
        balancer.get("/").await;
        fs::metadata(balancer.file("logs/access.log")).expect("our file").len() > 0
    })
    .await;
    // A change of the user takes effect at the next start.
    let other = Config::of([&a]).server("user = \"daemon\"").section(&sections(&first));
    balancer.configure(&other);
    let warnings = balancer.change("POST", "/admin/reload", None).await["warnings"].to_string();
    assert!(
        warnings.contains("[server] user daemon instead of nobody, which takes effect at the next start"),
        "{warnings}"
    );
    balancer.stop().await;
    assert!(balancer.file("run/web.sock").exists(), "the user cannot remove it");
    balancer.configure(&config(&first));
    balancer.start_again().await;
    assert_eq!(Wire::connect(low).await.exchange(&Request::get("/")).await.status, 200, "the next start replaces it");
}

#[tokio::test]
async fn files_that_the_user_cannot_reopen_fail_start_and_check() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let config = Config::of([&a])
        .server(USER)
        .admin("token_file = \"private/token\"")
        .section("[state]\npersist = false\n[log]\nfile = \"evenkeel.log\"\n");
    let mut balancer = prepare(&config);
    let (private, token) = (balancer.file("private"), balancer.file("private/token"));
    fs::create_dir(&private).expect("our folder");
    fs::write(&token, "0123456789abcdef0123456789abcdef\n").expect("our folder");
    fs::write(balancer.file("evenkeel.log"), "").expect("our folder");
    set_mode(&private, 0o700);
    set_mode(&token, 0o600);
    let commands = |path: &Path, letters: &str| {
        let path = path.display();
        format!("`chgrp nogroup {path} && chmod g+{letters} {path}`")
    };
    let file = balancer.config_file();
    let checked = async || evenkeel(["check", file.to_str().expect("UTF-8")]).await;
    for (letters, path) in [("x", &private), ("r", &token), ("w", &balancer.file("evenkeel.log"))] {
        balancer.launch();
        assert!(!balancer.process().end().await.success());
        let command = commands(&fs::canonicalize(path).expect("our file"), letters);
        assert!(balancer.log().contains(&command), "{command}: {}", balancer.log());
        let outcome = checked().await;
        assert!(!outcome.status.success() && outcome.stderr.contains(&command), "{command}: {outcome:?}");
        let done = Command::new("sh").arg("-c").arg(command.trim_matches('`')).status().expect("a shell");
        assert!(done.success());
    }
    let outcome = checked().await;
    assert!(outcome.status.success(), "{outcome:?}");
    balancer.launch();
    eventually("it listens", async || Wire::try_connect(balancer.address()).await.is_ok()).await;
    assert_eq!(of_threads(balancer.process().id(), "Uid")[0], "65534 65534 65534 65534");
}

#[tokio::test]
async fn an_unknown_user_fails_the_start_as_root() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let mut balancer = prepare(&Config::of([&a]).server("user = \"no-such-user\""));
    balancer.launch();
    assert!(!balancer.process().end().await.success());
    let message = "[server] user is \"no-such-user\": there is no user \"no-such-user\"";
    assert!(balancer.log().contains(message), "{}", balancer.log());
    let outcome = evenkeel(["check", balancer.config_file().to_str().expect("UTF-8")]).await;
    assert!(!outcome.status.success() && outcome.stderr.contains(message), "{outcome:?}");
}

/// Otherwise a user could use a link to make root create a file or a socket in any of root's folders.
#[tokio::test]
async fn root_creates_nothing_behind_links_that_the_user_controls() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let log = "[access_log]\nfile = \"own/link/job\"\n".to_owned();
    for section in [log, listener("unix:own/link/web.sock")] {
        let config = Config::of([&a]).server(USER).section(&section).section("[state]\npersist = false");
        let mut balancer = prepare(&config);
        own_folder(&balancer.file("own"));
        fs::create_dir(balancer.file("roots")).expect("our folder");
        set_mode(&balancer.file("roots"), 0o755);
        symlink(balancer.file("roots"), balancer.file("own/link")).expect("our folder");
        balancer.launch();
        assert!(!balancer.process().end().await.success(), "{}", balancer.log());
        assert!(balancer.log().contains("own/link"), "{}", balancer.log());
        assert_eq!(fs::read_dir(balancer.file("roots")).expect("our folder").count(), 0);
        // A link that belongs to root is followed.
        fs::remove_file(balancer.file("own/link")).expect("our link");
        fs::remove_dir(balancer.file("own")).expect("our folder");
        fs::create_dir(balancer.file("own")).expect("our folder");
        set_mode(&balancer.file("own"), 0o755);
        symlink("../roots", balancer.file("own/link")).expect("our folder");
        let outcome = evenkeel(["check", balancer.config_file().to_str().expect("UTF-8")]).await;
        assert!(outcome.status.success(), "{outcome:?}");
        balancer.launch();
        balancer.ready().await;
        let mut made = fs::read_dir(balancer.file("roots")).expect("our folder");
        assert_eq!(made.next().expect("a file").expect("a file").metadata().expect("a file").uid(), NOBODY);
    }
}

#[tokio::test]
async fn sockets_belong_to_the_user_and_reloads_can_change_their_permissions() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let config = |first: &str, second: &str| {
        let [first, second] = [("run/a.sock", first), ("own/b.sock", second)]
            .map(|(path, lines)| listener(format!("unix:{path}")) + lines + "\n");
        Config::of([&a]).server(USER).section(&(first + &second)).section("[state]\npersist = false")
    };
    let mut balancer = prepare(&config("owner = \":daemon\"", "owner = \":daemon\""));
    own_folder(&balancer.file("own"));
    fs::create_dir(balancer.file("run")).expect("our folder");
    set_mode(&balancer.file("run"), 0o755);
    let daemon = nix::unistd::Group::from_name("daemon").expect("groups").expect("a group").gid.as_raw();
    // The user is not a member of that group.
    balancer.launch();
    assert!(!balancer.process().end().await.success());
    assert!(balancer.log().contains("SupplementaryGroups="), "{}", balancer.log());
    let outcome = evenkeel(["check", balancer.config_file().to_str().expect("UTF-8")]).await;
    assert!(outcome.status.success() && outcome.stderr.contains("which user nobody cannot set"), "{outcome:?}");
    // Root can set the group if the folder is root's.
    balancer.configure(&config("owner = \":daemon\"", ""));
    balancer.launch();
    balancer.ready().await;
    let rights = |path: &str| {
        let file = fs::metadata(balancer.file(path)).expect("a socket");
        (file.mode() & 0o777, file.uid(), file.gid())
    };
    assert_eq!(rights("run/a.sock"), (0o660, NOBODY, daemon));
    assert_eq!(rights("own/b.sock"), (0o660, NOBODY, NOBODY));
    balancer.configure(&config("owner = \":daemon\"\nmode = \"0666\"", ""));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(rights("run/a.sock"), (0o666, NOBODY, daemon));
    // What the user cannot do is refused, and nothing changes.
    balancer.configure(&config("mode = \"0600\"", "owner = \"root\""));
    for path in ["/admin/reload?dry_run=true", "/admin/reload"] {
        assert_eq!(balancer.admin("POST", path, None).await.status, 400);
        assert_eq!(rights("run/a.sock"), (0o666, NOBODY, daemon));
    }
    // Without an owner, the file gets what a start would give it.
    balancer.configure(&config("", "mode = \"0606\""));
    balancer.change("POST", "/admin/reload", None).await;
    assert_eq!(rights("run/a.sock"), (0o660, NOBODY, NOBODY));
    assert_eq!(rights("own/b.sock"), (0o606, NOBODY, NOBODY));
    balancer.stop().await;
    assert!(!balancer.file("own/b.sock").exists() && balancer.file("run/a.sock").exists());
}

/// As with Certbot: the certificate is a link in a closed folder to a file in an open one.
#[tokio::test]
async fn check_looks_at_every_folder_that_a_link_leads_through() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let config = Config::of([&a]).server(USER).admin("token_file = \"live/token\"").section("[state]\npersist = false");
    let mut balancer = prepare(&config);
    for folder in ["live", "archive"] {
        fs::create_dir(balancer.file(folder)).expect("our folder");
        set_mode(&balancer.file(folder), 0o755);
    }
    fs::write(balancer.file("archive/token1"), "0123456789abcdef0123456789abcdef\n").expect("our folder");
    set_mode(&balancer.file("archive/token1"), 0o644);
    symlink("../archive/token1", balancer.file("live/token")).expect("our folder");
    set_mode(&balancer.file("live"), 0o700);
    let command = format!("chgrp nogroup {}", fs::canonicalize(balancer.file("live")).expect("our folder").display());
    let outcome = evenkeel(["check", balancer.config_file().to_str().expect("UTF-8")]).await;
    assert!(!outcome.status.success() && outcome.stderr.contains(&command), "{command}: {outcome:?}");
    balancer.launch();
    assert!(!balancer.process().end().await.success());
    assert!(balancer.log().contains(&command), "{}", balancer.log());
}

/// As nginx does: "the "user" directive makes sense only if the master process runs with super-user privileges".
#[tokio::test]
async fn a_process_that_is_not_root_stays_its_user_and_logs_that() {
    if !is_root() {
        return;
    }
    let a = Origin::start("a").await;
    let folder = tempfile::TempDir::new_in("/tmp").expect("a temporary directory");
    set_mode(folder.path(), 0o755);
    // Where nobody can access it, whatever folder the tests were built in.
    let copy = folder.path().join("evenkeel");
    // By another process: a program that this one is starting for another test would have a copy of the file that is
    // written, and nobody can execute a file that somebody may still write to.
    assert!(Command::new("cp").arg(program()).arg(&copy).status().expect("a program of every system").success());
    for (user, is_told) in [("daemon", true), ("nobody", false)] {
        let config = Config::of([&a]).server(&format!("user = \"{user}\"")).section("[state]\npersist = false");
        let balancer = prepare(&config);
        let log = balancer.file("output");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
        command.args(["run", "--config"]).arg(balancer.config_file());
        let process = Process::start(command, &log);
        eventually("it listens", async || Wire::try_connect(balancer.address()).await.is_ok()).await;
        assert_eq!(Wire::connect(balancer.address()).await.exchange(&Request::get("/")).await.status, 200);
        let message =
            "[server] user is \"daemon\", but only root can become another user: the process stays user 65534";
        eventually("it has told that", async || process.output().contains(message) || !is_told).await;
        assert_eq!(process.output().contains(message), is_told, "{}", process.output());
        assert_eq!(process.output().contains("WARN"), is_told, "{}", process.output());
    }
    assert_eq!(a.heads(), 2);
}
