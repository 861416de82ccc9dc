//! A PostgreSQL for one test, from Debian's package: a fresh cluster in a temporary folder, run by an unprivileged user
//! (it refuses to run as root), removed with the test.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tempfile::TempDir;
use tokio::net::TcpSocket;

pub struct Postgres {
    folder: TempDir,
    programs: PathBuf,
    pub port: u16,
    process: Option<Child>,
    _held: TcpSocket,
}

/// A socket that never listens: reserves the port, while a server may still bind it, repeatedly.
fn hold_port() -> TcpSocket {
    let held = TcpSocket::new_v4().unwrap();
    held.set_reuseaddr(true).unwrap();
    held.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    held
}

impl Postgres {
    pub const PASSWORD: &str = "not a secret";

    /// Returns once it accepts connections.
    pub fn start() -> Self {
        Self::start_with("scram-sha-256")
    }

    /// One without a password.
    pub fn start_trusting() -> Self {
        Self::start_with("trust")
    }

    fn start_with(authentication: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held = hold_port();
        let port = held.local_addr().unwrap().port();
        let mut server = Self { folder, programs: programs(), port, process: None, _held: held };
        let password = server.folder.path().join("password");
        fs::write(&password, Self::PASSWORD).unwrap();
        server.give_away();
        let mut initdb = server.command("initdb");
        initdb.args(["--username", "app", "--auth", authentication, "--encoding", "UTF8", "--locale", "C.UTF-8"]);
        initdb.args(["--no-sync", "--pwfile"]).arg(&password).arg("-D").arg(server.data());
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.start_again();
        server
    }

    /// Its URL through `ports`.
    pub fn url(&self, ports: &[u16]) -> String {
        let hosts: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("postgresql://app@{}/postgres", hosts.join(","))
    }

    pub fn start_again(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k", ""]);
        command.args(["-c", "fsync=off", "-c", "shared_buffers=16MB"]);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let mut ready = self.command("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if ready.status().unwrap().success() {
                return;
            }
            let log = || fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "PostgreSQL has ended: {}", log());
            assert!(Instant::now() < deadline, "PostgreSQL is not ready: {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Stops it and ends all its connections.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A fast shutdown, which waits for nobody.
            kill(Pid::from_raw(process.id().try_into().unwrap()), Signal::SIGINT).unwrap();
            process.wait().unwrap();
        }
    }

    /// Requires TLS from now on.
    pub fn require_tls(&mut self, certificate: &str, key: &str) {
        self.stop();
        let file = |name: &str| self.data().join(name);
        fs::write(file("server.crt"), certificate).unwrap();
        fs::write(file("server.key"), key).unwrap();
        fs::set_permissions(file("server.key"), fs::Permissions::from_mode(0o600)).unwrap();
        let rules = fs::read_to_string(file("pg_hba.conf")).unwrap();
        fs::write(file("pg_hba.conf"), rules.replace("\nhost ", "\nhostssl ")).unwrap();
        let settings = fs::read_to_string(file("postgresql.conf")).unwrap();
        fs::write(file("postgresql.conf"), settings + "\nssl = on\n").unwrap();
        self.give_away();
        self.start_again();
    }

    /// Gives the folder to the user that runs the server.
    fn give_away(&self) {
        if Uid::effective().is_root() {
            let owned = Command::new("chown").args(["-R", "nobody"]).arg(self.folder.path()).status().unwrap();
            assert!(owned.success());
        }
    }

    /// Runs a statement as superuser.
    pub fn sql(&self, statement: &str) {
        let mut command = self.command("psql");
        command.args(["-q", "-v", "ON_ERROR_STOP=1", "-c", statement, &self.url(&[self.port])]);
        let output = command.env("PGPASSWORD", Self::PASSWORD).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A PostgreSQL program, run by an unprivileged user, and ended by the kernel together with the test.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        if Uid::effective().is_root() {
            command.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]);
        }
        // SIGQUIT ends it and its children at once.
        command.args(["--pdeathsig", "QUIT"]).arg(self.programs.join(program)).current_dir("/");
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The folder of the newest installed version.
fn programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let number =
        |path: &Path| path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<u32>().ok());
    let newest = versions.map(|version| version.path()).max_by_key(|path| number(path));
    let programs = newest.map(|version| version.join("bin")).filter(|programs| programs.join("initdb").exists());
    programs.expect("PostgreSQL is not installed: on Debian, apt-get install postgresql")
}
