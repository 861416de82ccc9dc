//! `app serve` as a process: what it says when it starts and how it ends.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

fn serve(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    command
        .args(["serve", "--name", "web1", "--trivial-passwords", "--shutdown-delay", "0s", "--data-dir"])
        .arg(folder);
    command
}

#[test]
fn says_where_it_listens_and_ends_well_on_either_signal() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = serve(folder.path())
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("app web1 listening on ").unwrap();
        TcpStream::connect(address.parse::<SocketAddr>().unwrap()).unwrap();
        kill(Pid::from_raw(process.id().try_into().unwrap()), signal).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "one line and no more");
        assert_eq!(process.wait().unwrap().code(), Some(0));
    }
}

/// A full pipe stopped whoever wrote the next line: first the requests, then the end.
#[test]
fn a_log_that_nobody_reads_stops_neither_requests_nor_the_end() {
    for is_read_at_last in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let mut process = serve(folder.path())
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim_end().strip_prefix("app web1 listening on ").unwrap();
        // More than the pipe and the queue hold.
        let path = "x".repeat(8_000);
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for _ in 0..300 {
            write!(stream, "HEAD /{path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            let mut answer = [0; 4096];
            let count = stream.read(&mut answer).expect("an answer in time");
            assert!(answer[..count].starts_with(b"HTTP/1.1 404 "));
        }
        drop(stream);
        if is_read_at_last {
            let mut line = String::new();
            while !line.contains("lines of this log were lost") {
                line.clear();
                assert!(stderr.read_line(&mut line).unwrap() > 0, "what was lost is told");
            }
        }
        kill(Pid::from_raw(process.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = process.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("it did not end");
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert_eq!(status.code(), Some(0));
        if is_read_at_last {
            let mut rest = String::new();
            stderr.read_to_string(&mut rest).unwrap();
            assert!(rest.trim_end().ends_with("stopped"), "{rest}");
        }
    }
}

#[test]
fn a_taken_port_is_told_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = serve(folder.path()).args(["--listen", &address]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("--listen") && error.contains(&address) && error.contains("choose another port"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_is_told_with_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = serve(&file.join("below")).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("--data-dir") && error.contains("may be written"), "{error}");
}
