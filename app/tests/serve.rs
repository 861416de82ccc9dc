//! `app serve` as a process: what it says when it starts and how it ends.
#![allow(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use image::ImageEncoder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn serve(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    command
        .args(["serve", "--name", "web1", "--trivial-passwords", "--shutdown-delay", "0s", "--data-dir"])
        .arg(folder);
    command
}

#[test]
fn logs_its_address_and_stops_on_either_signal() {
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
fn a_full_log_pipe_blocks_neither_requests_nor_the_stop() {
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
        let request = format!("HEAD /{} HTTP/1.1\r\nHost: x\r\n\r\n", "x".repeat(8_000));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        for _ in 0..300 {
            // At once: the second of several writes would wait for the first to be acknowledged, for 40 ms.
            stream.write_all(request.as_bytes()).unwrap();
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
        end(&mut process);
        if is_read_at_last {
            let mut rest = String::new();
            stderr.read_to_string(&mut rest).unwrap();
            assert!(rest.trim_end().ends_with("stopped"), "{rest}");
        }
    }
}

/// The end waited for whatever was still being worked on, a large picture for instance, without any limit.
#[test]
fn the_stop_does_not_wait_beyond_its_deadline() {
    let folder = tempfile::tempdir().unwrap();
    // A picture whose file nobody ever opens for writing: reading it never ends.
    let name = format!("{}.png", "0a".repeat(32));
    let pictures = folder.path().join("media/0a");
    std::fs::create_dir_all(&pictures).unwrap();
    assert!(Command::new("mkfifo").arg(pictures.join(&name)).status().unwrap().success());
    let (mut process, address) = listening(serve(folder.path()).args(["--shutdown-deadline", "200ms"]));
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /media/{name} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // Answered after it, over another connection.
    let mut other = TcpStream::connect(address).unwrap();
    while !{
        write!(other, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = vec![0; 65_536];
        let length = other.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).contains("app_requests_in_flight 2")
    } {
        other = TcpStream::connect(address).unwrap();
    }
    end(&mut process);
}

/// A colour profile of some hundred megabytes, in a picture of a few pixels in half a megabyte, was unpacked.
#[tokio::test]
async fn picture_metadata_does_not_fill_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, address) = listening(&mut serve(folder.path()));
    let url = format!("http://{address}");
    app::tls::choose_provider();
    let browser = reqwest::Client::builder().cookie_store(true).no_proxy().build().unwrap();
    let account = [("name", "ann"), ("password", "correct horse battery")];
    let post = |path: &str| browser.post(format!("{url}{path}")).header("origin", &url);
    assert_eq!(post("/accounts/signup/").form(&account).send().await.unwrap().status(), 200);
    let mut picture = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut picture);
    encoder.set_icc_profile(vec![0; 200 << 20]).unwrap();
    encoder.write_image(&[7; 300], 10, 10, image::ExtendedColorType::Rgb8).unwrap();
    let before = peak_memory(process.id());
    let picture = reqwest::multipart::Part::bytes(picture).file_name("a.png");
    let form = reqwest::multipart::Form::new().text("text", "Look").part("picture", picture);
    let posts = post("/posts/").multipart(form).send().await.unwrap();
    assert!(posts.text().await.unwrap().contains("src=\"/media/"), "the picture itself is fine");
    let more = peak_memory(process.id()) - before;
    assert!(more < 64 << 20, "{} MiB more", more >> 20);
    end(&mut process);
}

/// A path from the network turned the rest of its line around in a terminal.
#[test]
fn the_log_escapes_paths() {
    let folder = tempfile::tempdir().unwrap();
    let (mut process, address) = listening(serve(folder.path()).stderr(Stdio::piped()));
    let mut stderr = process.stderr.take().unwrap();
    for bytes in ["\u{202e}txt", "\u{9b}31m", "\u{2028}", "\u{200b}", "caf\u{e9}"] {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /{bytes} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
    }
    end(&mut process);
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    for shown in ["\\u{202e}txt", "\\u{9b}31m", "\\u{2028}", "\\u{200b}", "caf\u{e9}"] {
        assert!(log.contains(shown), "{shown} is not in {log}");
    }
    assert!(!log.contains(['\u{202e}', '\u{9b}', '\u{2028}', '\u{200b}']), "{log}");
}

#[test]
fn a_port_in_use_is_reported_with_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = serve(folder.path()).args(["--listen", &address]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("--listen") && error.contains(&address) && error.contains("choose another port"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_written_is_reported_with_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let output = serve(&file.join("below")).args(["--listen", "127.0.0.1:0"]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains("--data-dir") && error.contains("may be written"), "{error}");
}

/// Starts an instance on a free port, and gives its address.
fn listening(command: &mut Command) -> (Child, SocketAddr) {
    let mut process = command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim_end().strip_prefix("app web1 listening on ").unwrap().parse().unwrap();
    (process, address)
}

/// Asks it to end, and sees it do so.
fn end(process: &mut Child) {
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
}

/// The most that a process has had in memory at once, in bytes.
fn peak_memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}
