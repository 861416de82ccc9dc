//! nginx, as the reference for what must agree with it.

use std::net::SocketAddr;
use std::process::Command;

use tempfile::TempDir;

use crate::deadline::eventually;
use crate::port::Port;
use crate::process::{Process, installed};
use crate::wire::Wire;

/// A running nginx; it ends with the test.
pub struct Nginx {
    process: Process,
    port: Port,
    _directory: TempDir,
}

impl Nginx {
    /// Starts nginx with these directives within `http { … }`; `{listen}` in them stands for its address.
    pub async fn start(http: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let port = Port::reserve();
        let path = |name: &str| directory.path().join(name).display().to_string();
        let scratch: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", path(name)))
            .concat();
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nevents {{ worker_connections 512; }}\n\
             http {{\naccess_log off;\n{scratch}{}\n}}\n",
            path("nginx.pid"),
            http.replace("{listen}", &port.address().to_string()),
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration).expect("a writable directory");
        let mut command = Command::new(installed("nginx", "nginx-light"));
        command.arg("-p").arg(directory.path()).arg("-c").arg(&file);
        let mut process = Process::start(command, &directory.path().join("nginx.log"));
        eventually("nginx listens", async || {
            assert!(process.ended().is_none(), "nginx ended:\n{}", process.output());
            Wire::try_connect(port.address()).await.is_ok()
        })
        .await;
        Self { process, port, _directory: directory }
    }

    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    pub fn output(&self) -> String {
        self.process.output()
    }
}
