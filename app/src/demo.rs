//! `app demo`: a balancer and three instances on this machine, each a process of its own, on the embedded stores.
//!
//! It checks before it starts anything, says what to try once all is ready, reports whoever ends, restarts nobody,
//! and leaves nothing running: children are stopped in order, and the kernel stops them if this process is killed.

mod child;
mod guide;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, timeout, timeout_at};

use self::child::{Child, Speech};

/// The flags of the demonstration.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Port of the balancer on 127.0.0.1, the one to open in a browser; 0 takes any free one
    #[arg(long, env = "DEMO_PORT", default_value_t = 8888)]
    pub port: u16,
    /// Port of the balancer's admin API on 127.0.0.1; 0 takes any free one
    #[arg(long, env = "DEMO_ADMIN_PORT", default_value_t = 8889)]
    pub admin_port: u16,
    /// Ports of the three instances, separated by commas [default: 9001,9002,9003, or others where those are taken]
    #[arg(long, env = "DEMO_APP_PORTS", value_delimiter = ',', value_name = "PORT,PORT,PORT")]
    pub app_ports: Vec<u16>,
    /// Folder for accounts, posts, pictures, logs and the balancer's configuration; created if missing
    #[arg(long, env = "DEMO_DATA_DIR", default_value = "demo-data", value_name = "FOLDER")]
    pub data_dir: PathBuf,
    /// The balancer's program [default: evenkeel beside this program]
    #[arg(long, env = "DEMO_EVENKEEL", value_name = "FILE")]
    pub evenkeel: Option<PathBuf>,
}

/// Runs until it is told to stop, or until the balancer ends.
pub async fn run(args: DemoArgs) -> anyhow::Result<()> {
    // Before anything is started, so that a stop signal is not missed.
    let mut stops = StopSignals::new()?;
    let evenkeel = find_evenkeel(args.evenkeel.as_deref())?;
    let (listen, listen_held) = hold_port("--port", args.port)?;
    let (admin, admin_held) = hold_port("--admin-port", args.admin_port)?;
    ensure!(listen != admin, "--port and --admin-port are both {}: choose two", listen.port());
    let apps = choose_app_ports(&args.app_ports)?;
    let folder = prepare(&args.data_dir)?;

    let mut demo = Demo { folder, balancer: None, instances: Vec::new() };
    let result = tokio::select! {
        result = demo.start(&evenkeel, listen, admin, &apps) => match result {
            Ok(()) => {
                drop((listen_held, admin_held));
                guide::print(&demo, &evenkeel, listen, admin);
                demo.watch(&mut stops).await
            }
            Err(error) => Err(error),
        },
        () = stops.next() => Ok(()),
    };
    eprintln!("\nStopping; once more to stop at once.");
    tokio::select! {
        () = demo.stop() => {}
        () = stops.next() => {}
    }
    demo.kill();
    result
}

struct Demo {
    folder: PathBuf,
    balancer: Option<Child>,
    instances: Vec<Instance>,
}

struct Instance {
    name: String,
    address: SocketAddr,
    /// `None` once it has ended.
    child: Option<Child>,
}

impl Demo {
    async fn start(
        &mut self,
        evenkeel: &Path,
        listen: SocketAddr,
        admin: SocketAddr,
        apps: &[SocketAddr],
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        for (number, address) in (1..).zip(apps) {
            let name = format!("web{number}");
            let log = self.log(&name);
            let arguments = serve_arguments(&name, *address, &self.folder);
            self.instances.push(Instance {
                child: Some(Child::spawn(&program, &arguments, &log, Speech::Awaited)?),
                name,
                address: *address,
            });
        }
        for instance in &mut self.instances {
            let child = instance.child.as_mut().expect("it was just started");
            let line = child.first_line(deadline).await.with_context(|| format!("{} did not start", instance.name))?;
            let address = line.rsplit(' ').next().unwrap_or_default();
            instance.address = address.parse().with_context(|| format!("{} said {line:?}", instance.name))?;
        }
        let configuration = self.folder.join("evenkeel.toml");
        let backends: Vec<_> = self.instances.iter().map(|instance| instance.address).collect();
        std::fs::write(&configuration, balancer_configuration(listen, admin, &backends, &self.folder)?)
            .with_context(|| format!("cannot write {}", configuration.display()))?;
        let arguments = ["run".into(), "--config".into(), configuration.into_os_string()];
        let log = self.log("evenkeel");
        let balancer = self.balancer.insert(Child::spawn(evenkeel, &arguments, &log, Speech::Logged)?);
        tokio::select! {
            ready = ready(admin, deadline) => ready,
            ended = balancer.ended() => bail!("the balancer {ended} before it was ready{}", balancer.last_words()),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("logs/{name}.log"))
    }

    /// Reports processes that end, until it is told to stop. Ending instances is part of the demonstration.
    async fn watch(&mut self, stops: &mut StopSignals) -> anyhow::Result<()> {
        loop {
            let balancer = self.balancer.as_mut().context("the balancer is not running")?;
            tokio::select! {
                () = stops.next() => return Ok(()),
                ended = balancer.ended() => {
                    bail!("the balancer {ended}, so there is nothing more to show{}", balancer.last_words())
                }
                (index, ended) = any_ended(&mut self.instances) => {
                    let instance = &mut self.instances[index];
                    instance.child = None;
                    guide::print_ended(instance, &ended, &self.folder);
                }
            }
        }
    }

    /// Stops all processes: first the balancer, so that it can finish requests in flight, then the instances.
    async fn stop(&mut self) {
        if let Some(balancer) = &mut self.balancer {
            balancer.stop(nix::sys::signal::SIGTERM, STOP_TIMEOUT).await;
        }
        let children = self.instances.iter_mut().filter_map(|instance| instance.child.as_mut());
        // The balancer is gone, so they need no shutdown delay.
        futures_util::future::join_all(children.map(|child| child.stop(nix::sys::signal::SIGINT, STOP_TIMEOUT))).await;
    }

    /// Kills the remaining processes.
    fn kill(&mut self) {
        let instances = self.instances.iter_mut().filter_map(|instance| instance.child.as_mut());
        self.balancer.iter_mut().chain(instances).for_each(Child::kill);
    }
}

/// Waits until one of the instances has ended. Returns which one, and how.
async fn any_ended(instances: &mut [Instance]) -> (usize, String) {
    let running: Vec<_> = instances
        .iter_mut()
        .enumerate()
        .filter_map(|(index, instance)| instance.child.as_mut().map(|child| (index, child)))
        .map(|(index, child)| Box::pin(async move { (index, child.ended().await) }))
        .collect();
    if running.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(running).await.0
}

fn serve_arguments(name: &str, address: SocketAddr, folder: &Path) -> [std::ffi::OsString; 7] {
    [
        "serve".into(),
        "--name".into(),
        name.into(),
        "--listen".into(),
        address.to_string().into(),
        "--data-dir".into(),
        folder.into(),
    ]
}

fn find_evenkeel(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        ensure!(path.is_file(), "--evenkeel {}: there is no such file", path.display());
        return Ok(path.to_owned());
    }
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let path = program.with_file_name("evenkeel");
    ensure!(
        path.is_file(),
        "the balancer is not at {}: build it with `cargo build -p evenkeel`, or say where it is with --evenkeel",
        path.display()
    );
    Ok(path)
}

/// The requested port, if it is free, and a socket that reserves it. The socket is bound but does not listen: a child
/// can bind the same port with `SO_REUSEADDR`, as Rust's listeners do, but the kernel does not assign the port to
/// others.
fn hold_port(flag: &str, port: u16) -> anyhow::Result<(SocketAddr, TcpSocket)> {
    let held = || {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind((Ipv4Addr::LOCALHOST, port).into())?;
        Ok((socket.local_addr()?, socket))
    };
    held().map_err(|error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("port {port} is taken by another program: stop that, or choose another port with {flag}")
        }
        _ => anyhow!("port {port} cannot be used ({error}): choose another with {flag}"),
    })
}

/// The requested ports, or the default ones, or any (0) if those are taken. An instance with any port prints which one
/// it got.
fn choose_app_ports(asked: &[u16]) -> anyhow::Result<Vec<SocketAddr>> {
    let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let is_free = |port| hold_port("--app-ports", port).map(drop);
    if asked.is_empty() {
        return Ok(PREFERRED_APP_PORTS.into_iter().map(|port| address(is_free(port).map_or(0, |()| port))).collect());
    }
    ensure!(asked.len() == 3, "--app-ports has {} ports: give three, such as 9001,9002,9003", asked.len());
    asked.iter().map(|&port| is_free(port).map(|()| address(port))).collect()
}

/// Creates the data folder. Returns its absolute path.
fn prepare(folder: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("--data-dir {}: cannot create it; choose a folder that may be written", folder.display());
    std::fs::create_dir_all(folder.join("logs")).with_context(context)?;
    folder.canonicalize().with_context(context)
}

/// The balancer's access log.
fn access_log(folder: &Path) -> PathBuf {
    folder.join("logs/access.log")
}

fn balancer_configuration(
    listen: SocketAddr,
    admin: SocketAddr,
    backends: &[SocketAddr],
    folder: &Path,
) -> anyhow::Result<String> {
    let quoted = |path: PathBuf| -> anyhow::Result<String> {
        let path = path.to_str().context("--data-dir has characters that a configuration file cannot hold")?;
        // A JSON string is also a TOML string.
        Ok(serde_json::to_string(path)?)
    };
    let (state, access_log) = (quoted(folder.join("evenkeel-state.json"))?, quoted(access_log(folder))?);
    let backends: Vec<_> = backends.iter().map(|address| format!("{{ address = \"{address}\" }}")).collect();
    let backends = backends.join(", ");
    Ok(format!(
        r#"# Written by `app demo`, anew at every start.

[[listener]]
address = "{listen}"

[admin]
address = "{admin}"

[state]
file = {state}

[access_log]
file = {access_log}

[[pool]]
name = "app"
backends = [{backends}]
probe = {{ path = "/healthz", interval = "1s", timeout = "1s", rise = 2, fall = 2 }}

[[route]]
path = "/"
pool = "app"
"#
    ))
}

/// Waits until the balancer has probed every backend once.
async fn ready(admin: SocketAddr, deadline: Instant) -> anyhow::Result<()> {
    while !matches!(timeout(REQUEST_TIMEOUT, is_ready(admin)).await, Ok(Ok(true))) {
        ensure!(Instant::now() < deadline, "the balancer was not ready within {} s", START_TIMEOUT.as_secs());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

async fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    Ok(answer == *b"HTTP/1.1 200")
}

/// Requests to stop, from the terminal or the system.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

const PREFERRED_APP_PORTS: [u16; 3] = [9001, 9002, 9003];
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = hold_port("--admin-port", port).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()) && error.contains("--admin-port"), "{error}");
        assert!(choose_app_ports(&[port, 0, 0]).is_err(), "ports that were asked for are not replaced");
        assert!(choose_app_ports(&[0, 0]).unwrap_err().to_string().contains("three"));
    }

    #[tokio::test]
    async fn a_child_can_listen_on_a_reserved_port() {
        let (address, held) = hold_port("--port", 0).unwrap();
        let listening = TcpListener::bind(address).unwrap();
        drop(held);
        assert!(std::net::TcpStream::connect(listening.local_addr().unwrap()).is_ok());
    }

    #[test]
    fn the_configuration_names_every_backend_and_quotes_the_folder() {
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let folder = Path::new("/tmp/a \"b\"");
        let text = balancer_configuration(address(1), address(2), &[address(3), address(4)], folder).unwrap();
        assert!(text.contains(r#"backends = [{ address = "127.0.0.1:3" }, { address = "127.0.0.1:4" }]"#), "{text}");
        for file in [r#""/tmp/a \"b\"/evenkeel-state.json""#, r#""/tmp/a \"b\"/logs/access.log""#] {
            assert!(text.contains(&format!("file = {file}")), "{text}");
        }
    }
}
