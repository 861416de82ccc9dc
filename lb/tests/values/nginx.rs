//! Tables, expressions, look-ups and escaping, compared with nginx: the same tables and requests must give the same
//! values. Intended differences are omitted here and documented in docs/values.md.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use evenkeel::value::encode::Escape;
use evenkeel::value::request::{argument, cookie};
use evenkeel::value::table::{Percent, Tables, Written, WrittenCases};
use evenkeel::value::variable::Variable;
use evenkeel::value::{Facts, Phase, Presence, Scope, Value};

/// The time nginx may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(20);

/// The parts of a request that values use.
#[derive(Debug, Clone, Default)]
struct Request {
    /// Path and query.
    target: String,
    fields: Vec<(&'static str, String)>,
}

struct Asked<'a> {
    request: &'a Request,
    tables: &'a Tables,
}

impl Facts for Asked<'_> {
    fn write(&self, variable: &Variable, out: &mut Vec<u8>) -> Presence {
        let (_, query) = self.request.target.split_once('?').unwrap_or((&self.request.target, ""));
        let fields = || self.request.fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        let found = match variable {
            Variable::Table(id) => return self.tables.write(*id, self, out),
            Variable::Field(key) => return key.write(fields(), out),
            Variable::Query(name) => argument(query.as_bytes(), name),
            Variable::Cookie(name) => {
                cookie(fields().filter(|(name, _)| *name == b"Cookie").map(|(_, value)| value), name)
            }
            Variable::Args => Some(query.as_bytes()).filter(|query| !query.is_empty()),
            Variable::RequestUri => Some(self.request.target.as_bytes()),
            other => panic!("{other} is not told"),
        };
        out.extend_from_slice(found.unwrap_or_default());
        found.map_or(Presence::Missing, |_| Presence::Present)
    }
}

fn map(name: &str, from: &str, hostnames: bool, cases: &[(&str, &str)], default: &str) -> Written {
    let cases = cases.iter().map(|(case, value)| ((*case).to_owned(), (*value).to_owned())).collect();
    let (name, from, default) = (name.to_owned(), from.to_owned(), Some(default.to_owned()));
    Written { name, from, cases: WrittenCases::Map { cases, hostnames }, default }
}

fn shares(name: &str, from: &str, shares: &[(f64, &str)], default: &str) -> Written {
    let shares = shares.iter().map(|(percent, value)| (Percent::new(*percent).expect("valid"), (*value).to_owned()));
    Written { cases: WrittenCases::Shares(shares.collect()), ..map(name, from, false, &[], default) }
}

/// nginx's directive for a table.
fn directive(table: &Written) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let default = quoted(table.default.as_deref().unwrap_or_default());
    let line = |(case, value): &(String, String)| format!("  {} {};\n", quoted(case), quoted(value));
    let Written { name, from, .. } = table;
    match &table.cases {
        WrittenCases::Map { cases, hostnames } => {
            let cases: String = cases.iter().map(line).collect();
            let hostnames = if *hostnames { "  hostnames;\n" } else { "" };
            format!("map {} ${name} {{\n{hostnames}  default {default};\n{cases}}}\n", quoted(from))
        }
        WrittenCases::Shares(shares) => {
            let line =
                |(percent, value): &(Percent, String)| format!("  {}% {};\n", percent.as_percent(), quoted(value));
            let shares: String = shares.iter().map(line).collect();
            format!("split_clients {} ${name} {{\n{shares}  * {default};\n}}\n", quoted(from))
        }
        WrittenCases::Networks(_) => String::new(),
    }
}

/// Expressions as operators write them, and unusual ones.
const EXPRESSIONS: &[&str] = &[
    r"\.(css|js)$",
    r"(?i)\.(PNG|jpe?g)$",
    r"^/u/(\d+)(?:/(.*))?$",
    r"^/api(/.*)?$",
    r"/\.(?!well-known)",
    r"/\.(?!well-known\/).*",
    r"^/(?!api/|static/)(.*)$",
    r"^(?!.*\.php$)(.+)$",
    r"^/x/(?!ab|ac)(.*)$",
    r"/x/(?!ab|ac|$)(.*)$",
    r"^/(a|b)(?=/)",
    r"(a+)(b+)?",
    r"(a+?)(b+)?",
    r"^[\w.-]+$",
    r"^([^/]+)/([^/]+)$",
    r"^a{2}$",
    r"^a{$",
    r"^\Qa.b\E",
    r"^\h*a",
    r"[[:upper:]]",
    r"[^]a/]",
    r"^(?:www\.)?(.+)$",
    r"\bb\b",
    r"^(?:ü)+$|^(ä)",
    r"",
];

const SUBJECTS: &[&str] = &[
    "/a.css",
    "/A.CSS",
    "/a.jpeg",
    "/a.PNG",
    "/u/12",
    "/u/12/x/y",
    "/u/x",
    "/api",
    "/api/x",
    "/apix",
    "/.git/config",
    "/a/.env",
    "/.well-known/.git",
    "/.well-known",
    "/.well-known/x",
    "/.w",
    "/.",
    "/static/x",
    "/static",
    "/a.php",
    "/a.php5",
    "/x/ad",
    "/x/a",
    "/x/abc",
    "/x/",
    "/a/b",
    "/b/",
    "/b",
    "aabb",
    "ab",
    "b",
    "aa",
    "a{",
    "a.b",
    "axb",
    "A",
    "www.a",
    "www.",
    "a b c",
    "a-b",
    "ä",
    "ü",
    "]",
    "/",
    "~",
    "",
    "a\tb",
];

#[test]
fn tables_look_up_as_nginx_maps_do() {
    let mut tables = Vec::new();
    for (place, expression) in EXPRESSIONS.iter().enumerate() {
        let groups = evenkeel::value::pattern::Pattern::parse(expression, evenkeel::value::pattern::Case::Sensitive)
            .unwrap_or_else(|why| panic!("{why}"))
            .groups();
        let result: String = (1..=groups).map(|group| format!(" <${group}>")).collect();
        let case = format!("~{expression}");
        tables.push(map(&format!("e{place}"), "$http_s", false, &[(&case, &format!("yes{result}"))], "no"));
    }
    let cases = [("a", "1"), ("~b", "2"), ("~*^C(.)", "3 $1"), ("~c", "4 $e0"), ("\\~", "5"), ("", "none")];
    tables.push(map("order", "$http_s", false, &cases, "default $arg_a"));
    tables.push(map("joined", "$arg_a $cookie_b", false, &[("1 2", "yes"), ("~^(.*) (.*)$", "$2-$1")], ""));
    let hosts =
        [("*.a.test", "1"), ("*.test", "2"), (".b.test", "3"), ("www.*", "4"), ("www.a.*", "5"), ("a.test", "6")];
    tables.push(map("host_of", "$http_s", true, &hosts, "none"));
    tables.push(shares("half", "$http_s", &[(10.0, "a"), (33.33, "b"), (0.5, "c")], "rest"));
    tables.push(shares("whole", "$http_s", &[(0.01, "a"), (99.99, "b")], "rest"));
    let directives: String = tables.iter().filter(|table| table.name != "whole").map(directive).collect();
    let whole = "split_clients \"$http_s\" $whole { 0.01% a; 99.99% b; }\n";

    let values: Vec<String> = tables
        .iter()
        .map(|table| format!("${}", table.name))
        .chain(["$arg_a", "$arg_A1", "$cookie_b", "$http_x_y", "$args", "${http_s}$$"].map(str::to_owned))
        .collect();
    let of_nginx: Vec<_> = values.iter().map(|value| value.replace("$$", "")).collect();
    let nginx = Nginx::start(&format!("{directives}{whole}"), &format!("return 200 \"{}\";", of_nginx.join("|\n")));

    let tables = Tables::read(&tables).unwrap_or_else(|problems| panic!("{problems:?}"));
    let scope = Scope { tables: &tables, ..Scope::new(Phase::Head) };
    let values: Vec<_> = values.iter().map(|text| Value::parse(text, &scope).expect(text)).collect();
    let mut connection = nginx.connect();
    let (mut compared, mut told) = (0, 0);
    for request in requests() {
        let answer = connection.ask(&request);
        let facts = Asked { request: &request, tables: &tables };
        for (value, theirs) in values.iter().zip(answer.split("|\n")) {
            let mut ours = Vec::new();
            value.write(&facts, &mut ours);
            let ours = String::from_utf8(ours).expect("a text");
            assert_eq!(ours.strip_suffix('$').unwrap_or(&ours), theirs, "{} of {request:?}", value.text());
            compared += 1;
            told += usize::from(!matches!(theirs, "" | "no" | "none"));
        }
    }
    assert!(compared > 20_000 && told > 5_000, "{compared} compared, {told} of them told something");
}

fn requests() -> Vec<Request> {
    let with = |subject: &str| Request { target: "/".to_owned(), fields: vec![("S", subject.to_owned())] };
    let mut all: Vec<_> = SUBJECTS.iter().copied().map(with).collect();
    let hosts = [
        "a.test",
        "A.TEST.",
        "x.a.test",
        "x.y.a.test",
        "xa.test",
        "b.test",
        "x.b.test",
        "www.c",
        "www.a.c",
        "www.test",
        ".test",
        "test",
        "www",
        "a..test",
        "..",
    ];
    all.extend(hosts.map(with));
    // The last of one share and the first of the next.
    all.extend(["k4484711", "k36865027"].map(with));
    all.extend((0..600).map(|key| with(&format!("192.0.2.{key}"))));
    for target in ["/?a=1", "/?A=1&a=2", "/?a&a=2", "/?ba=1&a=%20+", "/?a=", "/?a1=x", "/?", "/?a=1=2&", "/?xa=1"] {
        for cookies in [&["b=2"][..], &["a=1; B=3; b=2"], &["b"], &["a=1;b=2 "], &["bb=1", "b=2"]] {
            let cookies = cookies.iter().map(|value| ("Cookie", (*value).to_owned()));
            let others = [("X-Y", "1".to_owned()), ("x-y", "2".to_owned())];
            all.push(Request { target: target.to_owned(), fields: cookies.chain(others).collect() });
        }
    }
    // Since 1.23, nginx joins the values of a repeated field; before, it took the first one.
    if !Nginx::joins_fields() {
        all.iter_mut().for_each(|request| {
            let mut names = std::collections::HashSet::new();
            request.fields.retain(|(name, _)| names.insert(name.to_ascii_lowercase()));
        });
    }
    all
}

#[test]
fn log_lines_are_escaped_as_by_nginx() {
    let formats = [("default", Escape::Default), ("json", Escape::Json)];
    let text = "\"$http_s\" $http_x $args [$request_uri]";
    let directives: String = formats
        .iter()
        .map(|(escape, _)| {
            format!(
                "log_format f{escape} escape={escape} '{text}';\naccess_log {{directory}}/{escape}.log f{escape};\n"
            )
        })
        .collect();
    let nginx = Nginx::start(&directives, "return 200 ok;");
    let mut connection = nginx.connect();
    let subjects = ["", "plain", "\"\\", "a\tb", "\u{e4}\u{2028}\u{9b}", "{}", "$host", "a b%0A", "\u{7f}x"];
    let request = |subject: &&str| Request { target: "/\"?\\".to_owned(), fields: vec![("S", (*subject).to_owned())] };
    let requests: Vec<_> = subjects.iter().filter(|subject| !subject.contains('\u{7f}')).map(request).collect();
    for request in &requests {
        assert_eq!(connection.ask(request), "ok");
    }
    let directory = nginx.stop();
    let tables = Tables::default();
    for (name, escape) in formats {
        let theirs = std::fs::read_to_string(directory.path().join(format!("{name}.log"))).expect("a log");
        let value = Value::parse(text, &Scope::new(Phase::End)).expect("valid");
        let mut ours = Vec::new();
        for request in &requests {
            value.write_log(escape, usize::MAX, &Asked { request, tables: &tables }, &mut ours);
            ours.push(b'\n');
        }
        assert_eq!(String::from_utf8(ours).expect("UTF-8"), theirs, "{name}");
    }
}

struct Nginx {
    child: Child,
    directory: tempfile::TempDir,
}

impl Nginx {
    /// Starts it with directives in `http { … }` and in `location / { … }`.
    fn start(http: &str, location: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {};\n", path(name)))
            .concat();
        let http = http.replace("{directory}", &directory.path().display().to_string());
        let log = if http.contains("access_log") { "" } else { "access_log off;" };
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid {};\nerror_log stderr;\nevents {{ worker_connections 64; }}\n\
             http {{\n{log}\n{temporary}variables_hash_max_size 4096;\nkeepalive_requests 1000000;\n{http}\n\
             server {{ listen unix:{}; location / {{ default_type text/plain; {location} }} }}\n}}\n",
            path("nginx.pid"),
            path("socket"),
        );
        let file = directory.path().join("nginx.conf");
        std::fs::write(&file, configuration).expect("a writable folder");
        let output = std::fs::File::create(directory.path().join("stderr")).expect("a writable folder");
        let child = Command::new("nginx")
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::from(output))
            .spawn()
            .unwrap_or_else(|error| panic!("nginx (package nginx-light) is needed: {error}"));
        let mut nginx = Self { child, directory };
        let deadline = Instant::now() + LIMIT;
        while UnixStream::connect(nginx.socket()).is_err() {
            let ended = nginx.child.try_wait().expect("a child");
            let output = std::fs::read_to_string(nginx.directory.path().join("stderr")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "nginx does not listen: {ended:?}\n{output}");
            std::thread::sleep(Duration::from_millis(5));
        }
        nginx
    }

    fn socket(&self) -> std::path::PathBuf {
        Path::join(self.directory.path(), "socket")
    }

    fn connect(&self) -> Connection {
        let stream = UnixStream::connect(self.socket()).expect("nginx listens");
        stream.set_read_timeout(Some(LIMIT)).expect("a time limit");
        Connection(BufReader::new(stream))
    }

    fn joins_fields() -> bool {
        let output = Command::new("nginx").arg("-v").output().expect("nginx is installed");
        let version = String::from_utf8_lossy(&output.stderr).into_owned();
        let minor = version.split_once("nginx/1.").and_then(|(_, rest)| rest.split('.').next()?.parse::<u32>().ok());
        minor.is_none_or(|minor| minor >= 23)
    }

    /// Stops it gracefully, so that everything is written.
    fn stop(mut self) -> tempfile::TempDir {
        let asked = Command::new("nginx")
            .args(["-s", "quit", "-p"])
            .arg(self.directory.path())
            .arg("-c")
            .arg(self.directory.path().join("nginx.conf"))
            .status()
            .expect("nginx is installed");
        assert!(asked.success());
        self.child.wait().expect("nginx ends");
        let empty = tempfile::tempdir().expect("a temporary folder");
        std::mem::replace(&mut self.directory, empty)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Connection(BufReader<UnixStream>);

impl Connection {
    /// The body of the answer.
    fn ask(&mut self, request: &Request) -> String {
        let mut head = format!("GET {} HTTP/1.1\r\nHost: a.example\r\n", request.target).into_bytes();
        for (name, value) in &request.fields {
            head.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        head.extend_from_slice(b"\r\n");
        self.0.get_mut().write_all(&head).expect("written");
        let mut length = None;
        let mut line = String::new();
        self.0.read_line(&mut line).expect("a status line");
        assert!(line.starts_with("HTTP/1.1 200"), "{line} to {request:?}");
        loop {
            line.clear();
            self.0.read_line(&mut line).expect("a field");
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().ok();
            }
        }
        let mut body = vec![0; length.expect("Content-Length")];
        self.0.read_exact(&mut body).expect("a body");
        String::from_utf8(body).expect("UTF-8")
    }
}
