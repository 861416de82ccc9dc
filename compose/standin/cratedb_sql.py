#!/usr/bin/env python3
"""STAND-IN: answers CrateDB's `_sql` endpoint with made-up rows for the statements of sql/apply.py and
sql/exporter.py, and refuses any other. It proves that those two work as programs, not that CrateDB would agree.

    cratedb_sql.py LISTEN [NODES]      this node's address, and those of all, itself included [default: the services]

Which nodes are there is no fiction: those that accept connections. As the real server does, it refuses what changes
tables without a majority, and, with one node missing, until gateway.recover_after_time is over.
"""

import json
import re
import signal
import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NODES = [f"cratedb-{n}" for n in (1, 2, 3)]
ADDRESSES = sys.argv[2].split(",") if len(sys.argv) > 2 else [f"{node}:4200" for node in NODES]
TABLES = ["users", "logins", "posts"]
STARTED = time.monotonic()
RECOVER_AFTER_SECONDS = 3


def is_there(address):
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    except OSError:
        return False


def nodes_there():
    return sum(map(is_there, ADDRESSES))


class State:
    """Of the cluster, as this node knows it."""

    recovered = False
    majority_since = None

    @classmethod
    def block(cls):
        """Why tables cannot be changed now."""
        there = nodes_there()
        if there * 2 <= len(ADDRESSES):
            cls.majority_since = None
            return "blocked by: [MASTER_NOT_DISCOVERED/2/no master]"
        cls.majority_since = cls.majority_since or time.monotonic()
        waited = time.monotonic() - cls.majority_since
        cls.recovered = cls.recovered or there == len(ADDRESSES) or waited > RECOVER_AFTER_SECONDS
        return None if cls.recovered else "blocked by: [SERVICE_UNAVAILABLE/1/state not recovered / initialized]"


def rows(statement):
    age = time.monotonic() - STARTED
    per_node = lambda value: [[node, value(n)] for n, node in enumerate(NODES)]
    per_table = lambda value: [[table, value(n)] for n, table in enumerate(TABLES)]
    jobs = lambda value: [[node, kind, value(n)] for node in NODES for n, kind in enumerate(("SELECT", "INSERT", "DDL"))]
    known = [
        (r"CREATE TABLE IF NOT EXISTS \w+ ", lambda: []),
        (r"(CREATE|ALTER) USER ", lambda: []),
        (r"GRANT ", lambda: []),
        (r"SELECT name FROM sys.users", lambda: []),
        (r"SELECT count\(\*\) FROM sys.nodes", lambda: [[nodes_there()]]),
        (r"SELECT count\(\*\) FROM sys.jobs", lambda: [[1 + int(age) % 3]]),
        (r"SELECT name, heap\['used'\]", lambda: per_node(lambda n: 150e6 + 20e6 * n + 1e6 * (age % 60))),
        (r"SELECT name, heap\['max'\]", lambda: per_node(lambda n: 402653184)),
        (r"SELECT name, fs\['total'\]\['used'\]", lambda: per_node(lambda n: 20e9 + 1e4 * age)),
        (r"SELECT name, fs\['total'\]\['size'\]", lambda: per_node(lambda n: 100e9)),
        (r"SELECT name, load", lambda: per_node(lambda n: 0.2 + 0.1 * n)),
        (r"SELECT name, connections", lambda: per_node(lambda n: 4 + n)),
        (r"SELECT table_name, CASE", lambda: [[t, role, "STARTED", 3] for t in TABLES for role in ("primary", "replica")]),
        (r"SELECT table_name, sum\(num_docs\)", lambda: per_table(lambda n: int(20 + age * (n + 1)))),
        (r"SELECT table_name, sum\(size\)", lambda: per_table(lambda n: int(40e3 + 300 * age * (n + 1)))),
        (r"SELECT table_name, max\(severity\)", lambda: per_table(lambda n: 1)),
        (r"SELECT table_name, sum\((missing|underreplicated)_shards\)", lambda: per_table(lambda n: 0)),
        (r"SELECT node\['name'\], .* sum\(total_count\)", lambda: jobs(lambda n: int(age * (5 - 2 * n)))),
        (r"SELECT node\['name'\], .* sum\(failed_count\)", lambda: jobs(lambda n: 0)),
        (r"SELECT node\['name'\], .* sum\(sum_of_durations\)", lambda: jobs(lambda n: round(age * 0.02, 3))),
    ]
    for pattern, answer in known:
        if re.match(pattern, " ".join(statement.split())):
            return answer()
    return None


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        statement = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["stmt"]
        found = rows(statement)
        block = None if statement.startswith("SELECT") else State.block()
        if block:
            self.answer(503, {"error": {"message": block, "code": 5030}})
        elif found is None:
            self.answer(400, {"error": {"message": f"the stand-in does not know: {statement}", "code": 4000}})
        else:
            self.answer(200, {"rows": found, "rowcount": len(found)})

    def do_GET(self):
        self.answer(200, {"ok": True, "name": "stand-in"})

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
host, port = sys.argv[1].rsplit(":", 1)
ThreadingHTTPServer((host, int(port)), Handler).serve_forever()
