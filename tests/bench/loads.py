"""What is measured: each scenario is a load of one second or so on one balancer, and how to read what came of it."""

import re
import socket
import ssl
import subprocess
import time

from balancers import BOTH_CORES, CORE_OF_LOAD, HERE, WORK, pinned

FIELDS = [
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8",
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate",
]


# Evenkeel's choices in a proxy of Pingora's, and its engine in a server of Pingora's: docs/pingora.md.
EMBEDDED = ("pingora-proxy", "pingora-engine")
KINDS = ("evenkeel", "nginx", "haproxy", "envoy", *EMBEDDED)
# Those that write an access log.
LOGGING = tuple(kind for kind in KINDS if kind != "pingora-proxy")
# Those of which a bare form says anything.
BARE = ("evenkeel", "nginx", "haproxy")


class Failed(Exception):
    """A load did not do what it was to do; its numbers mean nothing."""


def output_of(words, seconds, cores):
    try:
        done = subprocess.run(pinned(cores, words), capture_output=True, text=True, timeout=seconds + 10)
    except subprocess.TimeoutExpired:
        raise Failed("no end") from None
    if done.returncode:
        raise Failed((done.stderr or done.stdout).strip()[-300:])
    return done.stdout


def wrk(path, connections=64, fields=(), tls=False, script=None):
    def load(balancer, seconds, cores):
        port, scheme = (balancer.tls_port, "https") if tls else (balancer.port, "http")
        words = ["wrk", "-t", len(cores), "-c", connections, "-d", seconds]
        for field in [*FIELDS, *fields]:
            words += ["-H", field]
        if script:
            words += ["-s", HERE / script]
        text = output_of([*words, f"{scheme}://127.0.0.1:{port}{path}"], seconds, cores)
        errors = re.search(r"connect (\d+), read (\d+), write (\d+)", text)
        if "Non-2xx" in text or errors and any(map(int, errors.groups())):
            raise Failed(" ".join(text.split())[-200:])
        total = re.search(r"(\d+) requests in", text)
        return int(total.group(1))
    return load


def h2load(path, connections, streams, content=None):
    """`content`: how much each request sends, in bytes."""
    def load(balancer, seconds, cores):
        words = ["h2load", "-t", 1, "-c", connections, "-m", streams, "-D", seconds]
        for field in FIELDS:
            words += ["-H", field]
        if content:
            file = WORK / f"content-{content}"
            file.write_bytes(b"x" * content)
            words += ["-d", file]
        text = output_of([*words, f"https://127.0.0.1:{balancer.tls_port}{path}"], seconds, cores)
        done = re.search(r"(\d+) succeeded, (\d+) failed, (\d+) errored", text)
        good = re.search(r"status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", text)
        # What is still under way when the time is up counts as neither.
        if "h2" not in text or not good or not int(done.group(1)) or int(done.group(2)) > connections * streams:
            raise Failed(" ".join(text.split())[-300:])
        return int(done.group(1))
    return load


def handshakes(balancer, seconds, cores):
    words = ["openssl", "s_time", "-new", "-time", seconds, "-connect", f"127.0.0.1:{balancer.tls_port}"]
    text = output_of(words, seconds, cores)
    return int(re.search(r"(\d+) connections in \d+ real seconds", text).group(1))


def resumed(balancer, seconds, cores):
    return int(output_of([HERE / "resume.py", balancer.tls_port, seconds], seconds, cores))


def echo(balancer, seconds, cores):
    return int(output_of([WORK / "echo", balancer.port, 64, seconds, 64], seconds, cores))


class Scenario:
    def __init__(self, key, title, load, target=None, instance="plain", cores=CORE_OF_LOAD, unit="request", kinds=KINDS):
        self.key, self.title, self.load, self.target = key, title, load, target
        self.instance, self.cores, self.unit, self.kinds = instance, cores, unit, kinds

    def measure(self, balancer, seconds):
        """CPU seconds per unit, units per second, and how busy the balancer kept one core."""
        if self.instance == "moved":
            balancer.move(BOTH_CORES)
        try:
            started, before = time.monotonic(), balancer.cpu_seconds()
            count = self.load(balancer, seconds, self.cores)
            used, elapsed = balancer.cpu_seconds() - before, time.monotonic() - started
        finally:
            if self.instance == "moved":
                balancer.move({0})
        if not count:
            raise Failed("nothing came through")
        return {"cpu": used / count, "rate": count / seconds, "busy": used / elapsed}


# `target`: the largest share of nginx's and of HAProxy's CPU per request that Evenkeel is to take.
SCENARIOS = [
    Scenario("small", "small, keep-alive", wrk("/small"), (0.8, 0.8)),
    Scenario("log", "the same, access log on", wrk("/small"), instance="log", kinds=LOGGING),
    Scenario("rules", "the same, 50 routes with 10 expressions, fields set both ways", wrk("/small"), (0.85, 0.85),
             instance="rules", kinds=("evenkeel", "nginx")),
    Scenario("close", "Connection: close", wrk("/small", fields=["Connection: close"]), (1.0, 1.0)),
    Scenario("10k", "10 KB", wrk("/10k"), (0.8, 0.8)),
    Scenario("1m", "1 MB", wrk("/1m", connections=16), (0.6, 0.6)),
    Scenario("post10k", "POST 10 KB", wrk("/post", script="post10k.lua"), (0.8, 0.8)),
    Scenario("post1m", "POST 1 MB, chunked", wrk("/stream", connections=16, script="post1m.lua")),
    Scenario("tls", "TLS, keep-alive", wrk("/small", tls=True), (0.8, 0.8)),
    Scenario("out-small", "TLS to the backends", wrk("/small"), (0.9, 0.9), instance="out", kinds=BARE),
    Scenario("out-1m", "1 MB, TLS to the backends", wrk("/1m", connections=16), (0.9, 0.9), instance="out", kinds=BARE),
    Scenario("handshake", "TLS handshake", handshakes, (0.5, 0.5), unit="handshake"),
    Scenario("resumed", "TLS session resumed, with one request", resumed, (0.8, 0.8), unit="connection"),
    Scenario("h2", "HTTP/2", h2load("/small", 16, 8), (1.0, 1.0)),
    Scenario("h2-1m", "HTTP/2, 1 MB", h2load("/1m", 4, 4), (0.8, 0.8)),
    Scenario("h2-post1m", "HTTP/2, POST 1 MB", h2load("/stream", 4, 4, content=1 << 20)),
    Scenario("ws", "WebSocket echo, 64 bytes", echo, unit="message"),
    Scenario("bare-small", "small, others bare", wrk("/small"), (0.85, 0.85), instance="bare", kinds=BARE),
    Scenario("bare-10k", "10 KB, others bare", wrk("/10k"), (0.8, 0.8), instance="bare", kinds=BARE),
    Scenario("bare-close", "Connection: close, others bare", wrk("/small", fields=["Connection: close"]), (1.0, 1.0),
             instance="bare", kinds=BARE),
    Scenario("bare-tls1m", "1 MB over TLS, others bare", wrk("/1m", connections=16, tls=True), (0.8, 0.8),
             instance="bare", kinds=BARE),
    Scenario("one", "small, 1 thread on both cores", wrk("/small"), instance="moved", cores=BOTH_CORES),
    Scenario("two", "small, 2 threads on both cores", wrk("/small"), instance="two", cores=BOTH_CORES),
]
IDLE = "idle"


class Idle:
    """Clients that keep their connection: over what, how many, and what one may take, if that is told. `beside`: or how much
    more than one of those may."""

    def __init__(self, key, title, clients, target=None, tls=False, http2=False, beside=None, kinds=KINDS):
        self.key, self.title, self.clients, self.target = key, title, clients, target
        self.tls, self.http2, self.beside, self.kinds = tls, http2, beside, kinds
        # One for all clients: the default one reads the system's certificates each time, in 30 ms.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname, self.context.verify_mode = False, ssl.CERT_NONE
        self.context.set_alpn_protocols(["h2" if http2 else "http/1.1"])

    def connect(self, balancer):
        if not self.tls:
            return socket.create_connection(("127.0.0.1", balancer.port), 5)
        return self.context.wrap_socket(socket.create_connection(("127.0.0.1", balancer.tls_port), 5))

    def request(self):
        fields = [field.split(": ", 1) for field in FIELDS]
        if not self.http2:
            head = "GET /small HTTP/1.1\r\nHost: bench.test\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields)
            return head.encode() + b"\r\n"
        fields = [(":authority", "bench.test"), (":path", "/small"), *((n.lower(), v) for n, v in fields)]
        # GET and https, then literals that are kept.
        block = b"\x82\x87" + b"".join(
            b"\x40" + b"".join(bytes([len(text)]) + text.encode() for text in field) for field in fields)
        frames = [(4, 0, 0, b""), (4, 1, 0, b""), (1, 5, 1, block)]
        return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(
            len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload
            for kind, flags, stream, payload in frames)


IDLES = [
    Idle("plain", "HTTP/1.1", 10_000, target=6 * 1024),
    Idle("tls", "HTTP/1.1 over TLS", 2_000, tls=True),
    # nginx has one protocol for a port in clear text.
    Idle("h2c", "HTTP/2 in clear text", 2_000, http2=True, beside="plain", kinds=("evenkeel", "haproxy", "envoy")),
    Idle("h2", "HTTP/2 over TLS", 2_000, tls=True, http2=True, beside="tls"),
]
# How much more than over HTTP/1.1 a client of HTTP/2 may take.
IDLE_HTTP2_TARGET = 4 * 1024


def idle_bytes(balancer, idle):
    """What a client costs that has made one request and keeps its connection."""
    request = idle.request()

    def one():
        s = idle.connect(balancer)
        connections.append(s)
        s.sendall(request)
        answer = b""
        while answer.count(b"x") < 200:
            part = s.recv(4096)
            if not part:
                raise Failed(f"connection {len(connections)} was closed")
            answer += part

    connections = []
    try:
        for _ in range(50):
            one()
        before = balancer.resident_bytes()
        for _ in range(idle.clients):
            one()
        time.sleep(0.5)
        for s in connections:
            s.setblocking(False)
            try:
                # Under TLS nothing can be looked at without being taken.
                if not (s.recv(1024) if idle.tls else s.recv(1, socket.MSG_PEEK)):
                    raise Failed("a connection was closed while it idled")
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
        return (balancer.resident_bytes() - before) / idle.clients
    except OSError as e:
        raise Failed(f"after {len(connections)} connections: {e}") from e
    finally:
        for s in connections:
            s.close()
