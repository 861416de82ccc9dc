"""The balancers under measurement, each with the same duties: probes of the backends where it has them, metrics,
the same fields about the client for the backend, the same limits, idle connections to backends kept. A *bare* nginx or
HAProxy has none of these but the idle connections. Pingora's proxy with Evenkeel's choices has the probes, the metrics
and the fields, and of the limits that on bodies."""

import copy
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

CORE_OF_BALANCER, CORE_OF_LOAD = {0}, {1}
BOTH_CORES = {0, 1}
HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "target" / "bench"
MAX_BODY_BYTES = 67108864
START_SECONDS = 15

# What a balancer's configuration says of requests where only one thing is done with all.
ONE_ROUTE = '[[route]]\npool = "app"\n'

# And where a lot is said: so many routes by path, and these by expression, none of which fits what is asked for.
ROUTES_BY_PATH = ["/small", *[f"/section-{number}" for number in range(1, 40)]]
EXPRESSIONS = [
    r"\.(css|js|png|jpe?g|svg|woff2)$", r"^/api/v[0-9]+/", r"^/u/([0-9]+)$", r"/\.(?!well-known)", r"^/blog/[0-9]{4}/",
    r"\.php$", r"^/(en|de|fr)/shop/", r"\.(bak|old|sql)$", r"^/download/[a-z0-9-]+\.zip$", r"^/@[a-z]+",
]


def free_ports(count):
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def command(name):
    """Daemons live in sbin, which is not on everybody's path."""
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def pinned(cores, words):
    """A command that keeps to these cores and ends with us, however we end."""
    cores = ",".join(str(core) for core in sorted(cores))
    return ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", cores, *[str(word) for word in words]]


def ask(port, path="/small"):
    """The status of a GET, or None."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as s:
            s.settimeout(1)
            s.sendall(f"GET {path} HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n".encode())
            head = s.recv(4096)
            return int(head.split(b" ")[1])
    except (OSError, ValueError, IndexError):
        return None


class Process:
    """A process that was started here and is ended here."""

    def __init__(self, name, words, cores, directory):
        self.name, self.directory = name, directory
        self.output = open(directory / "output", "wb")
        self.child = subprocess.Popen(
            pinned(cores, words), stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, cwd=directory)

    def wait_until_ready(self, port, seconds=START_SECONDS, status=200):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.child.poll() is not None:
                break
            if ask(port) == status:
                return self
            time.sleep(0.02)
        self.stop()
        raise RuntimeError(f"{self.name} does not start: {(self.directory / 'output').read_text()[-600:].strip()}")

    def pids(self):
        """The process and those it started."""
        tree, seen = [self.child.pid], 0
        while seen < len(tree):
            for task in pathlib.Path(f"/proc/{tree[seen]}/task").glob("*/children"):
                tree.extend(int(pid) for pid in task.read_text().split())
            seen += 1
        return tree

    def cpu_seconds(self):
        """User and system time so far, of all threads. `stat` tells the same in steps of 10 ms only."""
        nanoseconds = 0
        for pid in self.pids():
            for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9

    def resident_bytes(self):
        total = 0
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1]) * 1024
        return total

    def move(self, cores):
        for pid in self.pids():
            for task in os.listdir(f"/proc/{pid}/task"):
                os.sched_setaffinity(int(task), cores)

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(4)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.output.close()


class Balancer(Process):
    """Listens on `port`, and with TLS on `tls_port`."""

    def __init__(self, kind, setup, label, threads=1, log=False, bare=False, rules=False, out=False,
                 cores=CORE_OF_BALANCER, prefix=()):
        directory = WORK / "run" / label
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.port, self.tls_port, admin_port = free_ports(3)
        setup = setup.to_tls() if out else setup
        if bare:
            words = {"nginx": bare_nginx, "haproxy": bare_haproxy}[kind](setup, directory, self.port, self.tls_port)
        elif rules:
            write = {"evenkeel": evenkeel, "nginx": nginx}[kind]
            words = write(setup, directory, self.port, self.tls_port, admin_port, threads, log, rules)
        else:
            write = {"evenkeel": evenkeel, "nginx": nginx, "haproxy": haproxy, "envoy": envoy,
                     "pingora-proxy": pingora_proxy, "pingora-engine": pingora_engine}[kind]
            words = write(setup, directory, self.port, self.tls_port, admin_port, threads, log)
        super().__init__(label, [*prefix, *words], cores, directory)


class Setup:
    """What all balancers are given. `sites` is what Evenkeel's configuration says of requests."""

    def __init__(self, evenkeel, envoy, origins, log_port, probes=True, sites=ONE_ROUTE, embedded=None):
        self.evenkeel, self.envoy, self.origins, self.log_port, self.probes = evenkeel, envoy, origins, log_port, probes
        # The example that has Evenkeel in a Pingora server.
        self.embedded = embedded
        # Origins that speak TLS, with a certificate of this CA; whether they are those to be used.
        self.tls_origins, self.ca, self.out = [], WORK / "ca.pem", False
        self.sites = sites
        self.certificate, self.key, self.both = WORK / "cert.pem", WORK / "key.pem", WORK / "both.pem"
        if not self.both.exists():
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                 "-days", "3650", "-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test",
                 "-keyout", self.key, "-out", self.certificate], check=True, capture_output=True)
            self.both.write_text(self.certificate.read_text() + self.key.read_text())

    def to_tls(self):
        """The same, with backends that speak TLS."""
        setup = copy.copy(self)
        setup.origins, setup.out = self.tls_origins, True
        return setup


class TlsOrigin(Process):
    """nginx as several origins that speak TLS, whose certificate a CA has signed."""

    def __init__(self, setup, cores):
        directory = WORK / "run" / "tls-origin"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        leaf, key, ca_key = directory / "leaf.pem", directory / "leaf.key", directory / "ca.key"
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "3650"]
        for words in [
            [*new, "-subj", "/CN=bench CA", "-keyout", ca_key, "-out", setup.ca],
            [*new, "-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test", "-addext",
             "basicConstraints=CA:FALSE", "-CA", setup.ca, "-CAkey", ca_key, "-keyout", key, "-out", leaf],
        ]:
            subprocess.run(words, check=True, capture_output=True)
        (directory / "1m").write_bytes(b"x" * (1 << 20))
        setup.tls_origins = free_ports(3)
        listens = "".join(f"listen 127.0.0.1:{port} ssl backlog=4096;\n        " for port in setup.tls_origins)
        plain, = free_ports(1)
        (directory / "nginx.conf").write_text(f"""
daemon off;
user {'root' if os.geteuid() == 0 else 'nobody'};
worker_processes 1;
pid nginx.pid;
error_log stderr error;
events {{
    worker_connections 8192;
}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000000;
    root {directory};
    server {{
        {listens}listen 127.0.0.1:{plain};
        ssl_certificate {leaf};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        add_header X-Frame-Options DENY;
        location /small {{
            return 200 "{'x' * 200}";
        }}
        location /health {{
            return 200;
        }}
    }}
}}
""")
        super().__init__("tls-origin", [command("nginx"), "-p", directory, "-c", directory / "nginx.conf"], cores, directory)
        self.wait_until_ready(plain)


def site_with_rules():
    routes = [("path", f'"{path}"') for path in ROUTES_BY_PATH] + [("regex", f"'{regex}'") for regex in EXPRESSIONS]
    return """[[site]]
hosts = ["bench.test", "127.0.0.1"]
pool = "app"
request_headers = { set = { X-Tenant = "$host" }, remove = ["X-Debug"] }
response_headers = { set = { X-Frame-Options = "DENY", X-Content-Type-Options = "nosniff" }, remove = ["X-Powered-By"] }
""" + "".join(f'[[site.route]]\n{key} = {what}\npool = "app"\n' for key, what in routes)


def evenkeel(setup, directory, port, tls_port, admin_port, threads, log, rules=False, accepts_tls=True):
    sites = site_with_rules() if rules else setup.sites
    backends = ", ".join(f'{{ address = "127.0.0.1:{origin}" }}' for origin in setup.origins)
    access_log = '[access_log]\nfile = "access.log"\nformat = "combined"\n' if log else ""
    probe = '[pool.probe]\ntype = "http"\npath = "/health"\ninterval = "2s"\n' if setup.probes else ""
    tls = f'tls = {{ name = "bench.test", ca = "{setup.ca}" }}' if setup.out else ""
    secured = f"""[[listener]]
address = "127.0.0.1:{tls_port}"
max_body_bytes = {MAX_BODY_BYTES}
tls = {{ certificate = "{setup.certificate}", key = "{setup.key}" }}
""" if accepts_tls else ""
    (directory / "evenkeel.toml").write_text(f"""
[server]
threads = {threads}
shutdown_timeout = "1s"
max_connections = 15000

[[listener]]
address = "127.0.0.1:{port}"
max_body_bytes = {MAX_BODY_BYTES}

{secured}
[admin]
address = "127.0.0.1:{admin_port}"

[state]
persist = false

{access_log}
[[pool]]
name = "app"
backends = [{backends}]
{tls}

{probe}
{sites}""")
    return [setup.evenkeel, "run", "--config", directory / "evenkeel.toml"]


def pingora_proxy(setup, directory, port, tls_port, admin_port, threads, log):
    """Evenkeel's choices behind Pingora's proxy. Pingora accepts connections, those with TLS too."""
    *_, config = evenkeel(setup, directory, port, tls_port, admin_port, threads, log, accepts_tls=False)
    return [setup.embedded, config, f"127.0.0.1:{tls_port}", setup.certificate, setup.key]


def pingora_engine(setup, directory, port, tls_port, admin_port, threads, log):
    """Evenkeel's engine behind Pingora's listeners."""
    binary, *words = pingora_proxy(setup, directory, port, tls_port, admin_port, threads, log)
    return [binary, "--engine", *words]


def nginx(setup, directory, port, tls_port, admin_port, threads, log, rules=False):
    """Its bodies of requests and responses go through as it is set by default, except that a body of unknown length
    is streamed: kept in a file first, it would cost nginx a write and a read of the disk."""
    servers = "\n".join(f"        server 127.0.0.1:{origin} max_fails=5 fail_timeout=10s;" for origin in setup.origins)
    access_log = "access.log combined buffer=64k flush=1s" if log else "off"
    fields = locations = ""
    scheme = "http"
    if setup.out:
        scheme = "https"
        fields = f"""proxy_ssl_verify on;
    proxy_ssl_trusted_certificate {setup.ca};
    proxy_ssl_name bench.test;
    proxy_ssl_server_name on;
    proxy_ssl_protocols TLSv1.2 TLSv1.3;"""
    if rules:
        fields = """proxy_set_header X-Tenant $host;
    proxy_set_header X-Debug "";
    proxy_hide_header X-Powered-By;
    add_header X-Frame-Options DENY always;
    add_header X-Content-Type-Options nosniff always;"""
        locations = "\n".join(
            f"        location {what} {{ proxy_pass http://app; }}"
            for what in [*ROUTES_BY_PATH, *[f'~ "{regex}"' for regex in EXPRESSIONS]])
    (directory / "nginx.conf").write_text(f"""
daemon off;
user {'root' if os.geteuid() == 0 else 'nobody'};
worker_processes {threads};
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr error;
events {{
    worker_connections 16384;
}}
http {{
    access_log {access_log};
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_timeout 60s;
    keepalive_requests 1000000000;
    client_header_timeout 10s;
    client_body_timeout 60s;
    send_timeout 60s;
    client_max_body_size {MAX_BODY_BYTES};
    upstream app {{
{servers}
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        "" "";
    }}
    proxy_http_version 1.1;
    proxy_connect_timeout 2s;
    proxy_read_timeout 60s;
    proxy_send_timeout 60s;
    proxy_set_header Host $http_host;
    proxy_set_header Connection "";
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $http_host;
    proxy_set_header X-Real-IP $remote_addr;
    proxy_set_header X-Request-Id $request_id;
    proxy_set_header Forwarded "for=$remote_addr;host=$http_host;proto=$scheme";
    {fields}
    server {{
        listen 127.0.0.1:{port} backlog=4096{' reuseport' if threads > 1 else ''};
        listen 127.0.0.1:{tls_port} ssl http2 backlog=4096{' reuseport' if threads > 1 else ''};
        ssl_certificate {setup.certificate};
        ssl_certificate_key {setup.key};
        ssl_protocols TLSv1.2 TLSv1.3;
{locations}
        location / {{
            proxy_pass {scheme}://app;
        }}
        location /stream {{
            proxy_request_buffering off;
            proxy_pass http://app;
        }}
        location /ws {{
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 1h;
            proxy_pass http://app;
        }}
    }}
    server {{
        listen 127.0.0.1:{admin_port};
        location = /status {{
            stub_status;
        }}
    }}
}}
""")
    return [command("nginx"), "-p", directory, "-c", directory / "nginx.conf"]


def bare_nginx(setup, directory, port, tls_port):
    """The least that proxies over kept connections: no fields of its own, no log, no limits."""
    servers = "\n".join(f"        server 127.0.0.1:{origin};" for origin in setup.origins)
    (directory / "nginx.conf").write_text(f"""
daemon off;
user {'root' if os.geteuid() == 0 else 'nobody'};
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log stderr error;
events {{
    worker_connections 16384;
}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    keepalive_requests 1000000000;
    upstream app {{
{servers}
        keepalive 1024;
        keepalive_requests 1000000000;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        listen 127.0.0.1:{tls_port} ssl backlog=4096;
        ssl_certificate {setup.certificate};
        ssl_certificate_key {setup.key};
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {{
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass http://app;
        }}
    }}
}}
""")
    return [command("nginx"), "-p", directory, "-c", directory / "nginx.conf"]


def haproxy(setup, directory, port, tls_port, admin_port, threads, log):
    tls = f" ssl verify required ca-file {setup.ca} sni str(bench.test) verifyhost bench.test" if setup.out else ""
    servers = "\n".join(
        f"    server s{i} 127.0.0.1:{origin} check inter 2s{tls}" for i, origin in enumerate(setup.origins))
    to_log = f"    log 127.0.0.1:{setup.log_port} local0\n    option httplog" if log else ""
    (directory / "haproxy.cfg").write_text(f"""
global
    nbthread {threads}
    maxconn 12000
    no strict-limits
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout tunnel 1h
    retries 2
    option redispatch
frontend clients
{to_log}
    bind 127.0.0.1:{port} backlog 4096
    bind 127.0.0.1:{tls_port} backlog 4096 ssl crt {setup.both} alpn h2,http/1.1
    http-request deny deny_status 413 if {{ req.hdr_val(content-length) gt {MAX_BODY_BYTES} }}
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
    http-request set-header X-Forwarded-Proto http unless {{ ssl_fc }}
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Request-Id %[uuid()]
    http-request set-header Forwarded for=%[src];host=%[req.hdr(host)];proto=http
    default_backend app
backend app
    balance roundrobin
    http-reuse always
    option httpchk GET /health
{servers}
frontend metrics
    bind 127.0.0.1:{admin_port}
    http-request use-service prometheus-exporter if {{ path /metrics }}
""")
    return [command("haproxy"), "-db", "-f", directory / "haproxy.cfg"]


def bare_haproxy(setup, directory, port, tls_port):
    """As `bare_nginx`; without timeouts it warns, so these stay."""
    servers = "\n".join(f"    server s{i} 127.0.0.1:{origin}" for i, origin in enumerate(setup.origins))
    (directory / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 12000
    no strict-limits
    ssl-default-bind-options ssl-min-ver TLSv1.2
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    bind 127.0.0.1:{tls_port} backlog 4096 ssl crt {setup.both} alpn http/1.1
    default_backend app
backend app
    balance roundrobin
    http-reuse always
{servers}
""")
    return [command("haproxy"), "-db", "-f", directory / "haproxy.cfg"]


def envoy(setup, directory, port, tls_port, admin_port, threads, log):
    extension = "type.googleapis.com/envoy.extensions"

    def at(number):
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    manager = {
        "@type": f"{extension}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "clients",
        "use_remote_address": True,
        "request_headers_timeout": "10s",
        "common_http_protocol_options": {"idle_timeout": "60s"},
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "60s"}}]}]},
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{extension}.filters.http.router.v3.Router"}}],
    }
    if log:
        manager["access_log"] = [{"name": "file", "typed_config": {
            "@type": f"{extension}.access_loggers.file.v3.FileAccessLog", "path": str(directory / "access.log")}}]
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    secured = dict(chain, transport_socket={"name": "tls", "typed_config": {
        "@type": f"{extension}.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [{"certificate_chain": {"filename": str(setup.certificate)},
                                  "private_key": {"filename": str(setup.key)}}]}}})
    check = {"timeout": "1s", "interval": "2s", "healthy_threshold": 2, "unhealthy_threshold": 3,
             "http_health_check": {"path": "/health"}}
    many = {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    bootstrap = {
        "admin": {"address": at(admin_port)},
        "static_resources": {
            "listeners": [
                {"name": "plain", "address": at(port), "filter_chains": [chain]},
                {"name": "tls", "address": at(tls_port), "filter_chains": [secured]},
            ],
            "clusters": [{
                "name": "app", "type": "STATIC", "connect_timeout": "2s", "lb_policy": "ROUND_ROBIN",
                "health_checks": [check], "circuit_breakers": {"thresholds": [many]},
                "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": at(origin)}} for origin in setup.origins]}]},
            }],
        },
    }
    (directory / "envoy.json").write_text(json.dumps(bootstrap, indent=1))
    return [setup.envoy, "-c", directory / "envoy.json", "--concurrency", threads, "--disable-hot-restart",
            "--log-level", "error"]
