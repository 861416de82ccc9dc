#!/usr/bin/env python3
"""STAND-IN: answers CrateDB's HTTP endpoint with made-up rows for the statements of sql/apply.py and sql/exporter.py, and
refuses any other. It proves that those two work as programs, not that CrateDB would agree.

    cratedb_sql.py LISTEN [NODES]      this node's address, and those of all, itself included [default: the services]

Which nodes are there is no fiction: those that accept connections. As the real server does,
- without a majority it refuses what changes tables, answers 503 at `/`, and counts in `sys.nodes` those
  of before;
- with one node missing it changes no tables until gateway.recover_after_time is over;
- it tells a user who was not granted a table of `sys` that there is no such schema. A user that this node was not told of
  may do everything: each node knows only what it was told itself;
- it refuses to make a user twice.
"""

import base64
import json
import re
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NODES = [f"cratedb-{n}" for n in (1, 2, 3)]
TABLES = ["users", "logins", "posts"]
RECOVER_AFTER_SECONDS = 3


def is_there(address):
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    except OSError:
        return False


class Refused(Exception):
    """With the status and the words of the real server."""


class Cluster:
    """What a node knows of the cluster. Tests share one among their nodes."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.started = time.monotonic()
        self.recovered = False
        self.majority_since = None
        self.granted = {}
        # As long as there is no master, a node lists those that it last saw in the cluster.
        self.members = 1
        self.pool = ThreadPoolExecutor(len(addresses))
        self.checks = {}
        self.lock = threading.Lock()

    def nodes_there(self):
        # The name of a container that keeps breaking may take seconds not to be found: one check a node at a time.
        with self.lock:
            for address in self.addresses:
                if address not in self.checks or self.checks[address].done():
                    self.checks[address] = self.pool.submit(is_there, address)
            checks = list(self.checks.values())
        return sum(check.result() for check in wait(checks, timeout=0.5).done)

    def has_master(self):
        return self.nodes_there() * 2 > len(self.addresses)

    def refuse_changes(self):
        there = self.nodes_there()
        if there * 2 <= len(self.addresses):
            self.majority_since = None
            raise Refused(503, "blocked by: [MASTER_NOT_DISCOVERED/2/no master];")
        self.majority_since = self.majority_since or time.monotonic()
        waited = time.monotonic() - self.majority_since
        self.recovered = self.recovered or there == len(self.addresses) or waited > RECOVER_AFTER_SECONDS
        if not self.recovered:
            raise Refused(503, "blocked by: [SERVICE_UNAVAILABLE/1/state not recovered / initialized];")

    def may(self, user, table):
        return bool({"sys", table} & self.granted.get(user, {"sys"}))

    def rows(self, user, statement, args):
        statement = " ".join(statement.split())
        for table in re.findall(r"\b(?:FROM|JOIN) (sys\.\w+)", statement):
            if not self.may(user, table):
                raise Refused(404, "SchemaUnknownException[Schema 'sys' unknown]")
        if not statement.startswith("SELECT"):
            self.refuse_changes()
        made = re.match(r"CREATE USER (\w+)", statement)
        if made and made[1] in self.granted:
            raise Refused(409, f"RoleAlreadyExistsException[Role '{made[1]}' already exists]")
        if made:
            self.granted[made[1]] = set()
        grant = re.match(r"GRANT [\w, ]+ ON (?:SCHEMA|TABLE) ([\w., ]+) TO (\w+)$", statement)
        if grant:
            self.granted[grant[2]].update(grant[1].split(", "))
        if statement.startswith("SELECT name FROM sys.users"):
            return [[name] for name in self.granted if name in args]
        for pattern, answer in self.known():
            if re.match(pattern, statement):
                return answer()
        raise Refused(400, f"the stand-in does not know: {statement}")

    def known(self):
        age = time.monotonic() - self.started
        there = self.nodes_there()
        if there * 2 > len(self.addresses):
            self.members = there
        there = self.members
        per_table = lambda *values: [[table, *(value(n) for value in values)] for n, table in enumerate(TABLES)]
        node = lambda n: [NODES[n], 150e6 + 20e6 * n + 1e6 * (age % 60), 402653184, 20e9 + 1e4 * age, 100e9, 0.2 + 0.1 * n, 4 + n]
        shard = lambda n, primary: [TABLES[n], primary, "STARTED", 3, int(20 + age * (n + 1)), int(20e3 + 150 * age * (n + 1))]
        kinds = list(enumerate(("SELECT", "INSERT", "DDL")))
        return [
            (r"CREATE TABLE IF NOT EXISTS \w+ ", lambda: []),
            (r"(CREATE|ALTER) USER ", lambda: []),
            (r"GRANT ", lambda: []),
            (r"SELECT count\(\*\) FROM sys.nodes", lambda: [[there]]),
            (r"SELECT name, heap\['used'\], .* FROM sys.nodes", lambda: [node(n) for n in range(min(there, len(NODES)))]),
            (r'SELECT table_name, "primary", state, .* FROM sys.shards', lambda: [shard(n, p) for n in range(3) for p in (True, False)]),
            (r"SELECT table_name, max\(severity\), .* FROM sys.health", lambda: per_table(lambda n: 1, lambda n: 0, lambda n: 0)),
            (r"SELECT node\['name'\], classification\['type'\], .* FROM sys.jobs_metrics",
             lambda: [[name, kind, int(age * (5 - 2 * n)), 0, round(age * 0.02, 3)] for name in NODES for n, kind in kinds]),
            (r"SELECT node\['name'\], count\(\*\), .* FROM sys.operations", lambda: [[name, 1 + n, 0.01] for n, name in enumerate(NODES)]),
        ]


def handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                found = cluster.rows(self.user(), asked["stmt"], asked.get("args", []))
                self.answer(200, {"rows": found, "rowcount": len(found)})
            except Refused as refused:
                status, why = refused.args
                self.answer(status, {"error": {"message": why, "code": status * 10}})

        def do_GET(self):
            status = 200 if cluster.has_master() else 503
            self.answer(status, {"ok": status == 200, "status": status, "name": "stand-in"})

        def user(self):
            """`X-User` does not count."""
            credentials = (self.headers["Authorization"] or "").removeprefix("Basic ")
            return base64.b64decode(credentials).decode().split(":")[0] if credentials else "crate"

        def answer(self, status, body):
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    return Handler


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    host, port = sys.argv[1].rsplit(":", 1)
    addresses = sys.argv[2].split(",") if len(sys.argv) > 2 else [f"{node}:4200" for node in NODES]
    ThreadingHTTPServer((host, int(port)), handler(Cluster(addresses))).serve_forever()


if __name__ == "__main__":
    main()
