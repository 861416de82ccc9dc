//! Emulators of buckets, from PyPI: processes of each test on free ports, ended with the test.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::python::python_with;

pub struct Emulator {
    process: Child,
    address: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    S3,
    GoogleCloud,
}

/// Serves moto's S3 with a bucket in it, and says where.
const S3: &str = "
import threading, urllib.request
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
request = urllib.request.Request(f'http://127.0.0.1:{port}/pictures', method='PUT',
    headers={'Authorization': 'AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request, '
                              'SignedHeaders=host, Signature=0'})
urllib.request.urlopen(request)
print(f'127.0.0.1:{port}', flush=True)
threading.Event().wait()
";

/// Serves gcp-storage-emulator with a bucket in it, and says where. Google's own answers a HEAD like a GET without its
/// body, tells the tag and the age of an object, and takes one without content, none of which this one does.
const GOOGLE_CLOUD: &str = "
import threading
from gcp_storage_emulator import server as emulator
handler = emulator.RequestHandler
GET, end, data = handler.do_GET, handler.end_headers, emulator.Request.data.fget
emulator.Request.data = property(lambda self: data(self) or b'')
def end_headers(self):
    self.send_header('ETag', '\"x\"')
    self.send_header('Last-Modified', 'Sun, 01 Nov 2026 00:00:00 GMT')
    end(self)
def do_HEAD(self):
    write, ended = self.wfile.write, []
    def only_headers(data):
        if ended:
            return len(data)
        head, found, _ = bytes(data).partition(b'\\r\\n\\r\\n')
        if found:
            ended.append(True)
        return write(head + found)
    self.wfile.write = only_headers
    GET(self)
    self.close_connection = True
handler.end_headers, handler.do_HEAD = end_headers, do_HEAD
server = emulator.create_server('127.0.0.1', 0, in_memory=True, default_bucket='pictures')
server.start()
print('127.0.0.1:%d' % server._api._httpd.server_address[1], flush=True)
threading.Event().wait()
";

impl Emulator {
    /// Speaks S3.
    pub fn s3() -> Self {
        Self::start(python_with("moto.server"), S3, Kind::S3)
    }

    /// Speaks as Google Cloud Storage.
    pub fn google_cloud() -> Self {
        Self::start(python_with("gcp_storage_emulator"), GOOGLE_CLOUD, Kind::GoogleCloud)
    }

    fn start(python: Command, program: &str, kind: Kind) -> Self {
        // The kernel ends it with the test.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(python.get_program()).args(["-c", program]);
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let address = lines.by_ref().map_while(Result::ok).find(|line| line.starts_with("127.0.0.1:"));
        let address = address.expect("an emulator of buckets says where it listens");
        // What else it says is read and forgotten, so that it never waits.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { process, address, kind }
    }

    /// How to reach it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = match self.kind {
            Kind::S3 => vec![
                ("AWS_ENDPOINT_URL", format!("http://{}", self.address)),
                ("AWS_REGION", "us-east-1".to_owned()),
                ("AWS_ACCESS_KEY_ID", "key".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "not a secret".to_owned()),
            ],
            Kind::GoogleCloud => vec![("STORAGE_EMULATOR_HOST", self.address.clone())],
        };
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The address of an object in its bucket.
    pub fn object(&self, path: &str) -> String {
        format!("http://{}/pictures/{path}", self.address)
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
