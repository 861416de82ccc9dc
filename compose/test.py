#!/usr/bin/env python3
"""What the compose demonstration must bear, on a real engine. Called by test.sh, which prepares the images.

Brings a variant up, waits until everything is healthy, signs members up through the balancer; then under their
continuous load stops an instance, kills and freezes a Redis master, adds a Redis node and takes it out again, restarts
the balancer; runs the jobs again; takes everything down and up; and looks whether sessions, posts, pictures and the
balancer's state are still there. Then the large variant comes up with nodes that are broken from the start. The hardened
one is disturbed only where TLS matters: a master is killed, a node added. Prints how long each disturbance lasted and how
many requests failed.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = os.environ["COMPOSE_PROJECT_NAME"]
PORT = int(os.environ["EVENKEEL_PORT"])
NETWORK = os.environ["NETWORK"]
VERSION = os.environ["VERSION"]
PASSWORD = "correct horse battery staple"
# The hardened variant speaks HTTPS, with a certificate of its own authority.
TLS = sys.argv[1:2] == ["hardened"]
# Without what does not depend on the version of compose.
BRIEF = os.environ.get("EVENKEEL_BRIEF") == "yes"
ORIGIN = f"{'https' if TLS else 'http'}://127.0.0.1:{PORT}"


class Failed(Exception):
    pass


def docker(*args, check=True):
    run = subprocess.run(["docker", *args], capture_output=True, text=True)
    if check and run.returncode:
        raise Failed(f"docker {' '.join(args)}: {run.stderr.strip()}")
    return run.stdout.strip()


class Stack:
    def __init__(self, files, project=PROJECT, port=PORT, network=NETWORK):
        self.project, self.port = project, port
        self.environment = {**os.environ, "EVENKEEL_PORT": str(port), "NETWORK": network}
        self.command = [*os.environ["COMPOSE"].split(), "-p", project, *(part for name in files for part in ("-f", name))]

    def compose(self, *args):
        run = subprocess.run([*self.command, *args], capture_output=True, text=True, cwd=HERE, env=self.environment)
        if run.returncode:
            raise Failed(f"compose {' '.join(args)}: {(run.stdout + run.stderr).strip()[-1500:]}")
        return run.stdout

    def down(self, *args):
        try:
            self.compose("--profile", "grow", "down", *args)
        except Failed as error:
            # Docker 20.10 now and then forgets to let go of an endpoint of a container that is gone. The network then
            # stays until the engine restarts, and serves the next `up`.
            if "has active endpoints" not in str(error):
                raise
            print("compose: the engine kept a network that no container uses any more; going on with it", flush=True)
            if "--volumes" in args:
                left = docker("volume", "ls", "-q", "--filter", f"label=com.docker.compose.project={self.project}").split()
                docker("volume", "rm", *left) if left else None

    def up(self, *args):
        started = time.monotonic()
        self.compose("up", "-d", *args)
        self.wait_until_healthy()
        return time.monotonic() - started

    def containers(self):
        """State of each service: running or exited, health, exit code."""
        ids = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={self.project}").split()
        states = {}
        for one in json.loads(docker("inspect", *ids)) if ids else []:
            service = one["Config"]["Labels"]["com.docker.compose.service"]
            health = one["State"].get("Health", {}).get("Status", "unchecked")
            states[service] = (one["State"]["Status"], health, one["State"]["ExitCode"], one["Id"])
        return states

    def container(self, service):
        return self.containers()[service][3]

    def wait_until_healthy(self, seconds=240, without=()):
        deadline = time.monotonic() + seconds
        while True:
            unwell = {
                name: state[:3]
                for name, state in self.containers().items()
                if name not in without and not (state[:3] == ("exited", state[1], 0) if name.endswith("-init") else
                        state[0] == "running" and state[1] in ("healthy", "unchecked"))
            }
            if not unwell and Site(self.port).answers():
                return
            if time.monotonic() > deadline:
                raise Failed(f"not healthy after {seconds} s: {unwell or 'the site does not answer'}")
            time.sleep(0.5)


def connect(timeout, port=PORT):
    if TLS and port == PORT:
        trusted = ssl.create_default_context(cafile=str(Path(os.environ["EVENKEEL_SECRETS"], "tls_ca")))
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=trusted)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)


class Site:
    """The application as a browser sees it, with its cookies."""

    def __init__(self, port=PORT):
        self.port = port
        self.cookies = {}
        self.connection = None
        # Whether a connection that was closed while it idled is opened anew instead of failing the request.
        self.patient = True

    def request(self, method, path, fields=None, timeout=10):
        fresh = self.connection is None
        try:
            return self.send(method, path, fields, timeout)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            if fresh or not self.patient:
                raise
            return self.send(method, path, fields, timeout)

    def send(self, method, path, fields, timeout):
        if self.connection is None:
            self.connection = connect(timeout, self.port)
        headers = {"Host": f"127.0.0.1:{PORT}", "Origin": ORIGIN, "Sec-Fetch-Site": "same-origin"}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        body = None
        if isinstance(fields, bytes):
            body = fields
            headers["Content-Type"] = f"multipart/form-data; boundary={BOUNDARY}"
        elif fields is not None:
            body = urllib.parse.urlencode(fields)
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            self.connection.request(method, path, body, headers)
            answer = self.connection.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        for cookie in answer.headers.get_all("Set-Cookie") or []:
            name, _, value = cookie.split(";")[0].partition("=")
            self.cookies[name] = value
        return answer.status, text

    def answers(self):
        try:
            status, text = self.request("GET", "/readyz", timeout=3)
            return status == 200 and text.startswith("ready")
        except (OSError, http.client.HTTPException):
            return False

    def sign_up(self, name):
        status, text = self.request("POST", "/accounts/signup/", {"name": name, "password": PASSWORD, "next": "/"})
        if status != 303:
            raise Failed(f"signing up answers {status}: {text[:300]}")

    def log_in(self, name):
        status, text = self.request("POST", "/accounts/login/", {"name": name, "password": PASSWORD, "next": "/"})
        if status != 303:
            raise Failed(f"logging in answers {status}: {text[:300]}")

    def is_logged_in(self):
        return self.request("GET", "/accounts/logs/")[0] == 200

    def write_post(self, text, picture=None):
        status, answer = self.request("POST", "/posts/", post_form(text, picture))
        if status != 303:
            raise Failed(f"posting answers {status}: {answer[:300]}")

    def sees_post(self, text):
        return text in self.request("GET", "/posts/")[1]


# Posts are multipart, since they may carry a picture.
BOUNDARY = "evenkeel-boundary"


def post_form(text, picture=None):
    """A post as the form on the page sends it."""
    parts = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in (("text", text), ("alt", "a picture" if picture else ""))
    )
    if picture:
        head = (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="picture"; filename="p.png"\r\n'
                "Content-Type: image/png\r\n\r\n")
        parts += head.encode() + picture + b"\r\n"
    return parts + f"--{BOUNDARY}--\r\n".encode()


def picture():
    """A small PNG, another one each time."""
    size, tint = 24, os.urandom(3)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + tint * size for _ in range(size))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


class Load:
    """Logged-in members who keep asking and posting, on a few connections, until stopped; and what happened to them."""

    PAUSE = 0.02

    def __init__(self, members):
        self.members, self.stopping = members, threading.Event()
        self.lock, self.ok, self.failures, self.logged_out, self.slowest = threading.Lock(), 0, [], 0, 0.0
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(len(REQUESTS))]
        self.kinds = {}
        # The latest post that was acknowledged.
        self.posted = None

    def run(self, n):
        site = Site()
        site.patient = False
        # Each connection begins with another member.
        for turn in itertools.count(n * len(self.members) // len(REQUESTS)):
            if self.stopping.is_set():
                return
            site.cookies = dict(self.members[turn % len(self.members)].cookies)
            started = time.monotonic()
            method, path = REQUESTS[n]
            text = f"load {os.urandom(8).hex()}" if method == "POST" else None
            try:
                status, _ = site.request(method, path, post_form(text) if text else None, timeout=20)
                why = None if status < 500 else str(status)
            except (OSError, http.client.HTTPException) as error:
                status, why = 0, type(error).__name__
            took = time.monotonic() - started
            with self.lock:
                if why:
                    self.failures.append(time.monotonic())
                    self.kinds[why] = self.kinds.get(why, 0) + 1
                else:
                    self.ok += 1
                    self.slowest = max(self.slowest, took)
                    # Whoever is sent to the login page has lost their session.
                    self.logged_out += (method, status) == ("POST", 401) or path == "/accounts/logs/" and status != 200
                    if (method, status) == ("POST", 303):
                        self.posted = text
            time.sleep(self.PAUSE)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        time.sleep(1)
        return self

    def __exit__(self, *_):
        time.sleep(2)
        self.stopping.set()
        for thread in self.threads:
            thread.join()


# What each connection of the load asks for; the pages of accounts need the session.
# Enough of them that each Redis master keeps a session.
MEMBERS = 24
REDIS_TIMEOUT = 8  # seconds, APP_REDIS_TIMEOUT of the instances
REQUESTS = [("GET", "/accounts/logs/"), ("GET", "/api/hello/"), ("GET", "/accounts/logs/"), ("GET", "/posts/"), ("POST", "/posts/")]
ROWS = []


def disturb(name, members, work, allowed_failures=0):
    """Runs `work` under load. More failures than allowed, or a session lost, fails the test. `work` may return a note, and
    the seconds that a part of the sessions was away by Redis' own doing: requests wait for it as long as REDIS_TIMEOUT."""
    if BRIEF:
        return
    with Load(members) as load:
        note, away = work() or ("", 0)
    if away > REDIS_TIMEOUT - 1:
        allowed_failures = 100_000
        note += ", longer than requests wait"
    span = load.failures[-1] - load.failures[0] if load.failures else 0.0
    ROWS.append((name, load.ok, len(load.failures), span, load.slowest, load.logged_out, note))
    kinds = f" ({load.kinds})" if load.kinds else ""
    print(f"compose: {name}: {load.ok} answered, {len(load.failures)} failed{kinds} over {span:.1f} s, slowest {load.slowest:.2f} s, "
          f"logged out {load.logged_out}{'; ' + note if note else ''}", flush=True)
    if load.logged_out:
        raise Failed(f"{name}: {load.logged_out} requests found their session gone")
    if not load.posted or not members[0].sees_post(load.posted):
        raise Failed(f"{name}: the latest post that was acknowledged is not there: {load.posted}")
    if len(load.failures) > allowed_failures:
        raise Failed(f"{name}: {len(load.failures)} requests failed, {allowed_failures} allowed")


def redis_cli(stack, node, *args):
    return docker("exec", stack.container(node), "sh", "/redis/cli.sh", *args).replace("\r", "")


def redis_roles(stack, asked):
    """Role of each node that is not failing, as `asked` sees it."""
    roles = {}
    for line in redis_cli(stack, asked, "cluster", "nodes").splitlines():
        fields = line.split()
        name = fields[1].split(",")[1].split("=")[-1] if "," in fields[1] else fields[1]
        if "fail" not in fields[2]:
            roles[name] = "master" if "master" in fields[2] else "replica"
    return roles


def wait_for(what, condition, seconds=120):
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise Failed(f"{what} did not happen within {seconds} s")
        time.sleep(0.2)
    return time.monotonic() - started


def lose_master(stack, lose, bring_back):
    def work():
        roles = redis_roles(stack, "redis-1")
        victim = next(name for name, role in sorted(roles.items(), reverse=True) if role == "master" and name != "redis-1")
        asked, held = "redis-1", int(redis_cli(stack, victim, "dbsize"))
        if not held:
            raise Failed(f"{victim} keeps no session, so losing it proves nothing")
        lose(stack.container(victim))

        def three_masters():
            now = redis_roles(stack, asked)
            return victim not in now and list(now.values()).count("master") == 3 and \
                "cluster_slots_ok:16384" in redis_cli(stack, asked, "cluster", "info")

        took = wait_for("a replica taking over", three_masters)
        bring_back(stack.container(victim))
        wait_for(f"{victim} coming back as a replica", lambda: redis_roles(stack, asked).get(victim) == "replica")
        return f"{victim} with {held} sessions replaced after {took:.1f} s", took
    return work


def grow_and_shrink(stack):
    """A fourth master comes, takes its share of the slots and gives it back."""
    add = ["exec", None, "sh", "/redis/add-node.sh", "redis-7:6379", "redis-1:6379"]
    masters = lambda: [name for name, role in redis_roles(stack, "redis-1").items() if role == "master"]

    def work():
        stack.compose("--profile", "grow", "up", "-d", "redis-7")
        wait_for("redis-7 getting healthy", lambda: stack.containers()["redis-7"][1] == "healthy")
        add[1] = stack.container("redis-7")
        started = time.monotonic()
        docker(*add)
        added, held = time.monotonic() - started, int(redis_cli(stack, "redis-7", "dbsize"))
        if len(masters()) != 4 or not held:
            raise Failed(f"redis-7 was added, with {held} sessions, beside the masters {masters()}")
        time.sleep(2)
        started = time.monotonic()
        docker(*add, "--remove")
        removed = time.monotonic() - started
        if len(masters()) != 3:
            raise Failed(f"redis-7 was taken out, masters are {masters()}")
        docker("rm", "-f", "-v", add[1])
        return f"{held} sessions moved; added in {added:.0f} s, taken out in {removed:.0f} s", 0
    return work


def stop_and_start(stack, service):
    def work():
        stack.compose("stop", service)
        time.sleep(2)
        stack.compose("start", service)
        stack.wait_until_healthy()
        time.sleep(3)
    return work


class Broken(Stack):
    """The stack with services whose program ends at once, and is started again and again."""

    def __init__(self, stack, *services):
        self.services, self.file = services, tempfile.NamedTemporaryFile("w", suffix=".yml")
        self.file.write("services:\n" + "".join(f'  {service}: {{entrypoint: ["false"]}}\n' for service in services))
        self.file.flush()
        self.project, self.port, self.environment = stack.project, stack.port, stack.environment
        self.command = [*stack.command, "-f", self.file.name]

    def wait_until_healthy(self, seconds=240):
        super().wait_until_healthy(seconds, without=self.services)


def come_up_broken(stack):
    """The first `up` and a later one with a Redis node and a CrateDB node that are broken; then `up` with them mended."""
    stack.down("--volumes")
    whole = lambda: all(line in redis_cli(stack, "redis-1", "cluster", "info").splitlines()
                        for line in ("cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:6"))
    six = lambda: sorted(redis_roles(stack, "redis-1").values()) == ["master"] * 3 + ["replica"] * 3
    took = Broken(stack, "redis-2", "cratedb-3").up()
    member = Site()
    member.sign_up("broken")
    print(f"compose: up and answering after {took:.0f} s, the first time, with redis-2 and cratedb-3 broken", flush=True)
    took = stack.up()
    wait_for("redis-2 being added", lambda: whole() and six())
    print(f"compose: up and healthy after {took:.0f} s with both mended; redis-2 is in the cluster", flush=True)

    victim = next(name for name, role in sorted(redis_roles(stack, "redis-1").items()) if role == "master" and name != "redis-1")
    stack.down()
    took = Broken(stack, victim, "cratedb-2").up()
    if not member.is_logged_in():
        raise Failed(f"a session is lost because {victim} is broken")
    print(f"compose: up and answering after {took:.0f} s, another time, with {victim}, a master, and cratedb-2 broken; logged in", flush=True)
    took = stack.up()
    wait_for(f"{victim} coming back", lambda: whole() and six())
    print(f"compose: up and healthy after {took:.0f} s with both mended", flush=True)


def admin(method, path, body=None):
    """The balancer's admin API, at the address that only this machine and the containers can reach."""
    web = f"{NETWORK}.1.8" if ADMIN_LARGE else f"{NETWORK}.2.8"
    token = Path(os.environ["EVENKEEL_SECRETS"], "admin_token").read_text().strip()
    request = urllib.request.Request(f"http://{web}:8889{path}", data=json.dumps(body).encode() if body else None, method=method,
                                     headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return json.load(answer)


ADMIN_LARGE = True


def algorithm():
    return admin("GET", "/admin/algorithm")["pools"][0]["algorithm"]


def prometheus(query):
    url = f"http://127.0.0.1:{os.environ['PROMETHEUS_PORT']}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def check_monitoring(stack):
    wanted = {"evenkeel": 1, "app": 3, "redis": 6, "cratedb": 1, "prometheus": 1}

    def up():
        found = {}
        for one in prometheus("up == 1"):
            found[one["metric"]["job"]] = found.get(one["metric"]["job"], 0) + 1
        return found == wanted and len(prometheus("redis_up == 1")) == 6 and len(prometheus("cratedb_up == 1")) == 1

    wait_for("Prometheus seeing every target", up)
    print(f"compose: Prometheus scrapes {sum(wanted.values())} targets, six Redis nodes among them", flush=True)
    health = json.load(urllib.request.urlopen(f"http://127.0.0.1:{os.environ['GRAFANA_PORT']}/api/health", timeout=5))
    print(f"compose: Grafana {'IS A STAND-IN, which read the dashboards' if health.get('standin') else 'is well'}", flush=True)


def check_dashboards():
    """Every panel has something to show after what has happened; pictures of it where EVENKEEL_PICTURES says."""
    if not shutil.which("promtool"):
        print("compose: DASHBOARDS NOT CHECKED: promtool is missing (Debian: apt-get install prometheus)", flush=True)
        return
    url = f"http://127.0.0.1:{os.environ['PROMETHEUS_PORT']}"
    tool = [sys.executable, str(HERE / "../grafana/check.py"), "--live", url]
    if not TLS:
        tool += ["--without", "evenkeel_certificate"]
    run = subprocess.run(tool, capture_output=True, text=True)
    print("".join(f"compose: {line}\n" for line in run.stdout.splitlines()), end="", flush=True)
    if run.returncode:
        raise Failed(f"grafana/check.py --live: {run.stderr[-500:]}")
    if os.environ.get("EVENKEEL_PICTURES") and not TLS:
        notes = ["--note", "cratedb=tables, shards and nodes: made up by a stand-in"] if "standin/compose.yml" in sys.argv else []
        subprocess.run([sys.executable, str(HERE / "../grafana/draw.py"), "--prometheus", url,
                        "--out", os.environ["EVENKEEL_PICTURES"], "--minutes", "4", *notes], check=True)


def members_come_and_go(name):
    """Logins right and wrong, posts with pictures, a request that the balancer refuses, switches of the algorithm."""
    for n in range(6):
        member = Site()
        member.log_in(name)
        member.write_post(f"picture {n}", picture())
        Site().request("POST", "/accounts/login/", {"name": name, "password": "not the password", "next": "/"})
        refused = connect(5)
        refused.putrequest("POST", "/posts/")
        refused.putheader("Content-Length", "99999999")
        refused.endheaders()
        if refused.getresponse().status != 413:
            raise Failed("a body that is too large is not refused")
        refused.close()
        admin("POST", "/admin/algorithm", {"algorithm": ["ip-hash", "weighted", "round-robin", "least-connections"][n % 4]})
        time.sleep(5)
    admin("POST", "/admin/algorithm", {"algorithm": "least-connections"})


def see_picture_everywhere(stack, member):
    """The picture that one instance was given shows through each of the three."""
    found = re.search(r'src="(/media/[^"]+)"', member.request("GET", "/posts/")[1])
    if not found:
        raise Failed("the post shows no picture")
    for service in ("web1", "web2", "web3"):
        addresses = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}", stack.container(service)).split()
        with urllib.request.urlopen(f"http://{addresses[0]}:8888{found[1]}", timeout=5) as answer:
            if not answer.read().startswith(b"\x89PNG") or answer.headers["Content-Type"] != "image/png":
                raise Failed(f"{service} does not show the picture")
    print("compose: a picture shows through each of the three instances", flush=True)
    return found[1]


def where_things_are(stack, name):
    """Sessions are in Redis, on every master, and accounts in the database: not in some embedded store."""
    held = {node: int(redis_cli(stack, node, "dbsize")) for node, role in redis_roles(stack, "redis-1").items() if role == "master"}
    if sum(held.values()) < MEMBERS or not all(held.values()):
        raise Failed(f"sessions on Redis masters: {held}")
    print(f"compose: sessions are in Redis: {', '.join(f'{node} {count}' for node, count in sorted(held.items()))}", flush=True)
    if "standin/compose.yml" in sys.argv:
        query = f"SELECT (SELECT count(*) FROM users WHERE name LIKE '{name}%') || ' users, ' || (SELECT count(*) FROM posts WHERE author = '{name}') || ' post'"
        found = docker("exec", stack.container("cratedb-1"), "psql", "-h", "/tmp", "-U", "evenkeel", "-d", "postgres", "-Atc", query)
        if found != f"{MEMBERS} users, 1 post":
            raise Failed(f"the database holds {found}")
        print(f"compose: PostgreSQL holds {found}", flush=True)


def run_jobs_again(stack):
    for job in ("redis-init", "cratedb-init"):
        for _ in range(2):
            docker("start", "-a", stack.container(job))
        print(f"compose: {job} ran twice again, harmlessly", flush=True)


def one_image(stack):
    """The three instances run one and the same image."""
    used = {docker("inspect", "-f", "{{.Image}}", stack.container(service)) for service in ("web1", "web2", "web3")}
    if len(used) != 1:
        raise Failed(f"the instances run {len(used)} images: {used}")


def open_files(stack):
    if "standin/compose.yml" in sys.argv:
        print("compose: NOT CHECKED on this engine: that CrateDB may open 65536 files; the stand-in may open fewer", flush=True)
        return
    limit = docker("exec", stack.container("cratedb-1"), "sh", "-c", "ulimit -Hn")
    if limit != "65536":
        raise Failed(f"CrateDB may open {limit} files, not 65536")


def isolation(stack):
    """Nothing but what is meant for people can be reached from this machine's addresses."""
    published = docker("ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format", "{{.Ports}}")
    beyond = [port for port in re.findall(r"(\S+)->", published) if not port.startswith("127.0.0.1:")]
    if beyond:
        raise Failed(f"published beyond loopback: {beyond}")
    for service in ("evenkeel", "web1"):
        user = docker("inspect", "-f", "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}", stack.container(service))
        if user != "65532:65532 true":
            raise Failed(f"{service} runs as {user}")
    secrets = [path.read_text().strip() for path in Path(os.environ["EVENKEEL_SECRETS"]).iterdir() if path.name.endswith(("password", "token"))]
    shown = docker("inspect", *(state[3] for state in stack.containers().values()))
    if any(secret in shown for secret in secrets):
        raise Failed("a secret stands in a container's environment or command")
    print("compose: published on loopback only, programs unprivileged on read-only roots, no secret in any environment or command", flush=True)


def free_ports(count):
    """Different ones: each is held until all are found."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def small_beside_large(stack, build, members):
    """The small variant is a project of its own: it comes and goes, and the large one does not notice."""
    before = {service: state[3] for service, state in stack.containers().items()}
    small = Stack(["compose.small.yml", *build], f"{PROJECT}-small", *free_ports(1))
    small.down("--volumes")
    try:
        small.up()
        if members[0].is_logged_in() is not True or Site(small.port).request("GET", "/posts/")[0] != 200:
            raise Failed("small and large do not both serve")
    finally:
        small.down("--volumes")
    if {service: state[3] for service, state in stack.containers().items()} != before:
        raise Failed("the small variant changed containers of the large one")
    stack.wait_until_healthy()
    if not all(member.is_logged_in() for member in members):
        raise Failed("the small variant logged members of the large one out")
    print("compose: the small variant came up beside it and went away again; nothing changed here", flush=True)


def taken_port(files):
    """Where another program has the site's port, `up` says so, naming the port, and fails. docker-compose 1.29 says it at
    once and ends only when it has brought up the rest."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        stack = Stack(files, f"{PROJECT}-taken", other.getsockname()[1], "10.99")
        said, started = None, time.monotonic()
        try:
            up = subprocess.Popen([*stack.command, "up", "-d"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                  cwd=HERE, env=stack.environment)
            lines = []
            for line in up.stdout:
                lines.append(line)
                if said is None and str(stack.port) in line:
                    said = time.monotonic() - started
            if up.wait() == 0 or said is None:
                raise Failed(f"up ends with {up.returncode} though the site's port is taken: {''.join(lines)[-1500:]}")
        finally:
            stack.down("--volumes")
    print(f"compose: that the site's port is taken was said after {said:.0f} s", flush=True)


def cratedb_answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            status = answer.status
    except urllib.error.HTTPError as error:
        # The hardened variant's CrateDB wants to know who asks.
        status = error.code
    return status in ((200, 401) if TLS else (200,))


def redis_says(port, name):
    """What a node answers to whoever asks for its id."""
    password = Path(os.environ["EVENKEEL_SECRETS"], "redis_password").read_text().strip()
    with socket.create_connection(("127.0.0.1", int(port)), 5) as plain:
        trusted = TLS and ssl.create_default_context(cafile=str(Path(os.environ["EVENKEEL_SECRETS"], "tls_ca")))
        node = trusted.wrap_socket(plain, server_hostname=name) if TLS else plain
        node.sendall(f"AUTH {password}\r\nCLUSTER MYID\r\n".encode())
        said = b""
        while said.count(b"\r\n") < 3:
            said += node.recv(4096) or b"\r\n" * 3
    return said


def patiently(name, asks):
    """Asks until it is answered; says why it was not at first."""
    refused = []

    def answers():
        try:
            return asks()
        except (OSError, http.client.HTTPException) as error:
            refused.append(f"{type(error).__name__}: {error}")
            return False

    try:
        wait_for(f"{name} answering at its port of this machine", answers, 30)
    finally:
        if refused:
            print(f"compose: {name} did not answer {len(refused)} times at first: {refused[-1]}", flush=True)


def look_inside(files):
    """compose.inspect.yml lets this machine ask CrateDB and each Redis node, and changes nothing that runs."""
    names = ["CRATEDB_PORT", *(f"REDIS_{n}_PORT" for n in range(1, 7))]
    ports = dict(zip(names, map(str, free_ports(len(names)))))
    stack = Stack([*files, "compose.inspect.yml"])
    stack.environment.update(ports)
    before = stack.containers()
    stack.compose("up", "-d", "--no-deps", "inspect")
    wait_for("the inspection getting healthy", lambda: stack.containers()["inspect"][1] == "healthy")
    patiently("CrateDB", lambda: cratedb_answers(ports["CRATEDB_PORT"]))
    for n in range(1, 7):
        wanted = redis_cli(stack, f"redis-{n}", "cluster", "myid").encode()
        patiently(f"redis-{n}", lambda: wanted in redis_says(ports[f"REDIS_{n}_PORT"], f"redis-{n}"))
    stack.compose("rm", "--stop", "--force", "inspect")
    if {service: state[3] for service, state in stack.containers().items()} != {service: state[3] for service, state in before.items()}:
        raise Failed("looking inside changed other containers")
    print("compose: CrateDB and the six Redis nodes can be asked from this machine while compose.inspect.yml is there", flush=True)


def megabytes(text):
    number, unit = re.match(r"([\d.]+)(\w+)", text).groups()
    return float(number) * {"B": 1e-6, "KiB": 1 / 1024, "MiB": 1, "GiB": 1024}[unit]


def figures(stack, variant):
    running = [state[3] for state in stack.containers().values() if state[0] == "running"]
    lines = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", *running).splitlines()
    use = sorted(((megabytes(line.split()[1]), line.split()[0]) for line in lines), reverse=True)
    print(f"compose: {variant}: {len(running)} containers running, {len(stack.containers()) - len(running)} jobs ended well, "
          f"memory {sum(mb for mb, _ in use):.0f} MB in all:")
    for mb, name in use:
        print(f"    {mb:7.1f} MB  {re.sub('^' + PROJECT + '[-_]', '', name)}")
    for image in (f"evenkeel:{VERSION}", f"evenkeel-app:{VERSION}"):
        size = int(docker("image", "inspect", "-f", "{{.Size}}", image))
        print(f"    image {image}: {size / 1e6:.1f} MB")


def test(variant, files, stack):
    large = variant != "small"
    global ADMIN_LARGE
    ADMIN_LARGE = large
    # As a newcomer does it, with none of our images there.
    docker("rmi", f"evenkeel:{VERSION}", f"evenkeel-app:{VERSION}", check=False)
    print(f"compose: {variant}: images built, up and healthy after {stack.up('--build'):.0f} s", flush=True)
    one_image(stack)
    isolation(stack)
    if large:
        open_files(stack)

    name = f"ann{int(time.time())}"
    members = [Site() for _ in range(MEMBERS)]
    for n, member in enumerate(members):
        member.sign_up(f"{name}-{n}" if n else name)
        if not member.is_logged_in():
            raise Failed("signed up, but not logged in")
    ann = members[0]
    ann.write_post(f"hello from {name}", picture())
    shared = see_picture_everywhere(stack, ann)
    if large:
        where_things_are(stack, name)
    greeted = {json.loads(ann.request("GET", "/api/hello/")[1])["hostname"] for _ in range(12)}
    print(f"compose: signed up, posted, greeted by {sorted(greeted)}", flush=True)
    if len(greeted) != 3:
        raise Failed(f"three instances should greet, not {sorted(greeted)}")
    previous = admin("POST", "/admin/algorithm", {"algorithm": "least-connections"})["pools"][0]["previous"]
    print(f"compose: algorithm switched from {previous} to {algorithm()}", flush=True)

    build = [name for name in files if name == "standin/build.yml"]
    if variant == "large":
        small_beside_large(stack, build, members)
    if large:
        look_inside(files)
    if large and not BRIEF:
        check_monitoring(stack)
        run_jobs_again(stack)
    if not TLS:
        disturb("stop web2, start it again", members, stop_and_start(stack, "web2"))
    if large:
        # While a third of the slots has no master, requests for sessions there wait.
        disturb("kill a Redis master", members,
                lose_master(stack, lambda c: docker("kill", "-s", "KILL", c), lambda c: docker("start", c)))
        if not TLS:
            disturb("freeze a Redis master", members,
                    lose_master(stack, lambda c: docker("pause", c), lambda c: docker("unpause", c)))
        disturb("add a Redis node, take it out", members, grow_and_shrink(stack))
    if not TLS:
        # Nobody listens meanwhile: those requests are refused, which is allowed; not one may be wrong afterwards.
        disturb("stop the balancer, start it again", members, stop_and_start(stack, "evenkeel"), 100_000)
    if algorithm() != "least-connections":
        raise Failed("the balancer forgot the algorithm when it was restarted")
    if variant == "large":
        disturb("members come and go, the algorithm changes", members, lambda: members_come_and_go(name))
    if variant == "large" and not BRIEF:
        # Panels show what happened.
        check_dashboards()

    # The posts of the load have pushed the first one off the page.
    ann.write_post(f"last words of {name}")
    stack.down()
    if not TLS:
        # The small one says it as well, and 1.29 brings up the rest before it ends.
        taken_port(["compose.small.yml", *build] if BRIEF else files)
    left = docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}")
    if left:
        raise Failed(f"down left containers: {left}")
    print(f"compose: down; up and healthy again after {stack.up():.0f} s", flush=True)
    if not all(member.is_logged_in() for member in members):
        raise Failed("down and up lost a session")
    if not ann.sees_post(f"last words of {name}"):
        raise Failed("down and up lost the post")
    if ann.request("GET", shared)[0] != 200:
        raise Failed("down and up lost the picture")
    if algorithm() != "least-connections":
        raise Failed("down and up lost the algorithm")
    again = Site()
    again.log_in(name)
    print(f"compose: after down and up: {MEMBERS} members still logged in, post and picture there, algorithm kept, logging in works", flush=True)
    figures(stack, variant)
    # What lets `up` go on without a node is in check.py for every version of compose: the jobs' conditions.
    if variant == "large" and not BRIEF:
        come_up_broken(stack)


def said(outcome):
    """Says how it ended, here and, for whoever reads the end only, in test.sh's last lines."""
    print(outcome, flush=True)
    with open(os.environ["EVENKEEL_OUTCOMES"], "a") as outcomes:
        outcomes.write(outcome + "\n")


def main():
    variant, files = sys.argv[1], sys.argv[2:]
    stack = Stack(files)
    stack.down("--volumes", "--remove-orphans")
    try:
        test(variant, files, stack)
        said(f"compose: {variant}: PASSED{', without disturbances' if BRIEF else ''}")
    except (Failed, OSError, http.client.HTTPException, KeyError) as error:
        where = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(traceback.extract_tb(error.__traceback__))
                           if frame.filename == __file__)
        said(f"compose: {variant}: FAILED: {type(error).__name__}: {error} ({where})")
        for service, state in stack.containers().items():
            if state[0] != "running" or state[1] == "unhealthy" or service in ("evenkeel", "web1", "inspect"):
                print(f"--- {service} {state[:3]}\n" + subprocess.run(["docker", "logs", "--tail", "8", state[3]], capture_output=True, text=True).stderr[-1500:])
        sys.exit(1)
    finally:
        if os.environ.get("KEEP") != "yes":
            stack.down("--volumes", "--remove-orphans")
            # Those that only a further file names.
            left = docker("network", "ls", "-q", "--filter", f"label=com.docker.compose.project={PROJECT}").split()
            docker("network", "rm", *left, check=False) if left else None
        if ROWS:
            print(f"\n{'disturbance':44} {'answered':>8} {'failed':>6} {'for s':>6} {'slowest s':>9}")
            for name, ok, failed, span, slowest, _, note in ROWS:
                print(f"{name:44} {ok:8} {failed:6} {span:6.1f} {slowest:9.2f}  {note}")


if __name__ == "__main__":
    main()
