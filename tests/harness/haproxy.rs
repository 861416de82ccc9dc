//! HAProxy, as a second opinion beside nginx.

use std::fmt::Display;
use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::deadline::eventually;
use crate::port::Port;
use crate::process::{Process, installed};
use crate::wire::Wire;

/// A running HAProxy in front of one backend; it ends with the test.
pub struct Haproxy {
    _process: Process,
    port: Port,
    _directory: TempDir,
}

impl Haproxy {
    /// `backend`: its address, with keywords of HAProxy behind it.
    pub async fn start(backend: impl Display) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let port = Port::reserve();
        let configuration = format!(
            "defaults\n mode http\n timeout connect 2s\n timeout client 5s\n timeout server 5s\n timeout http-request 2s\n\
             frontend f\n bind {}\n default_backend b\nbackend b\n server a {backend}\n",
            port.address(),
        );
        let file = directory.path().join("haproxy.cfg");
        std::fs::write(&file, configuration).expect("a writable directory");
        let mut command = Command::new(installed("haproxy", "haproxy"));
        command.arg("-db").arg("-f").arg(&file);
        let mut process = Process::start(command, &directory.path().join("haproxy.log"));
        eventually("HAProxy listens", async || {
            assert!(process.ended().is_none(), "HAProxy ended:\n{}", process.output());
            Wire::try_connect(port.address()).await.is_ok()
        })
        .await;
        Self { _process: process, port, _directory: directory }
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }
}
