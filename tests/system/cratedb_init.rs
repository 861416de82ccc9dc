//! The job that creates CrateDB's tables, with mock nodes: also with one of them missing, as after `docker compose up`
//! with a broken node.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tests::process::Process;
use tests::{Port, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Nodes {
    directory: TempDir,
    addresses: Vec<String>,
    _ports: Vec<Port>,
    running: Vec<Process>,
}

impl Nodes {
    fn new() -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let ports: Vec<_> = (0..3).map(|_| Port::reserve()).collect();
        let addresses = ports.iter().map(|port| port.address().to_string()).collect();
        Self { directory, addresses, _ports: ports, running: Vec::new() }
    }

    /// Starts a node that knows the nodes in `members`.
    async fn start(&mut self, place: usize, members: &str) {
        let address = &self.addresses[place];
        let mut command = Command::new("python3");
        command.arg(repository("compose/standin/cratedb_sql.py")).args([address, members]);
        self.running.push(Process::start(command, &self.directory.path().join(format!("{place}.log"))));
        eventually("a node that listens", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
    }

    /// Whether the job succeeded, and its output.
    async fn init(&self, wait_seconds: &str) -> (bool, String) {
        let mut command = tokio::process::Command::new("python3");
        command.arg(repository("sql/apply.py")).args(["--nodes", &self.addresses.join(",")]);
        command.args(["--wait-seconds", wait_seconds]).arg(repository("sql/cratedb.sql"));
        let output = command.output().await.expect("python3");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    }
}

#[tokio::test]
async fn tables_are_created_with_two_of_three_nodes() {
    let mut nodes = Nodes::new();
    let all = nodes.addresses.join(",");
    nodes.start(1, &all).await;
    nodes.start(2, &all).await;
    let (is_done, printed) = nodes.init("60").await;
    assert!(is_done && printed.matches(": done").count() == 3, "{printed}");
}

#[tokio::test]
async fn tables_are_created_though_the_first_node_is_partitioned() {
    let mut nodes = Nodes::new();
    let all = nodes.addresses.join(",");
    let (alone, silent) = (nodes.addresses[0].clone(), Port::reserve());
    let nobody = silent.address();
    nodes.start(0, &format!("{alone},{nobody},{nobody}")).await;
    nodes.start(1, &all).await;
    nodes.start(2, &all).await;
    let (is_done, printed) = nodes.init("60").await;
    assert!(is_done && printed.matches(": done").count() == 3, "{printed}");
}

// Half an answer ended the job with a stack trace.
#[tokio::test]
async fn tables_are_created_though_the_first_node_dies_while_answering() {
    let mut nodes = Nodes::new();
    let all = nodes.addresses.join(",");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    nodes.addresses[0] = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move {
        let answers = [
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
            "HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\n{",
            "{\r\n",
        ];
        for answer in answers.into_iter().cycle() {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    nodes.start(1, &all).await;
    nodes.start(2, &all).await;
    for _ in 0..3 {
        let (is_done, printed) = nodes.init("60").await;
        assert!(is_done && printed.matches(": done").count() == 3, "{printed}");
    }
}

#[tokio::test]
async fn with_one_of_three_nodes_init_reports_what_is_missing() {
    let mut nodes = Nodes::new();
    let all = nodes.addresses.join(",");
    nodes.start(1, &all).await;
    let (is_done, printed) = nodes.init("1").await;
    assert!(!is_done && printed.contains(&format!("{} sees 1 of 2 nodes", nodes.addresses[1])), "{printed}");
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
