#!/usr/bin/env python3
"""What CrateDB says of itself in its `sys` tables, for Prometheus: nodes, heap, shards, health of each table.

    exporter.py --listen 0.0.0.0:9108 --nodes cratedb-1:4200,cratedb-2:4200,cratedb-3:4200

One for the whole cluster, since every node answers for all. Needs nothing but Python, which the image of CrateDB
has; the exporter that CrateDB's makers publish is a Java agent that is not in it. A cluster that does not answer
is `cratedb_up 0` and nothing else.
"""

import argparse
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from apply import Cluster, StatementFailed, Unreachable

# For each node asked: three that hang are given up within the four seconds that Prometheus waits.
NODE_SECONDS = 1

# name, type, help, labels, statement: the last column is the value, those before it the labels.
METRICS = [
    ("cratedb_nodes", "gauge", "Nodes that are part of the cluster.", (),
     "SELECT count(*) FROM sys.nodes"),
    ("cratedb_heap_used_bytes", "gauge", "Java heap in use, by node.", ("node",),
     "SELECT name, heap['used'] FROM sys.nodes"),
    ("cratedb_heap_max_bytes", "gauge", "Java heap at most, by node.", ("node",),
     "SELECT name, heap['max'] FROM sys.nodes"),
    ("cratedb_disk_used_bytes", "gauge", "Space in use on the disks of a node, whoever uses it.", ("node",),
     "SELECT name, fs['total']['used'] FROM sys.nodes"),
    ("cratedb_disk_size_bytes", "gauge", "Size of the disks of a node.", ("node",),
     "SELECT name, fs['total']['size'] FROM sys.nodes"),
    ("cratedb_load1", "gauge", "Load average over one minute, by node.", ("node",),
     "SELECT name, load['1'] FROM sys.nodes"),
    ("cratedb_connections_open", "gauge", "Open client connections of the PostgreSQL wire protocol, by node.", ("node",),
     "SELECT name, connections['psql']['open'] FROM sys.nodes"),
    ("cratedb_shards", "gauge", "Shards, by table, role (primary or replica) and state.", ("table", "role", "state"),
     """SELECT table_name, CASE WHEN "primary" THEN 'primary' ELSE 'replica' END, state, count(*)
        FROM sys.shards WHERE schema_name = 'doc' GROUP BY 1, 2, 3"""),
    ("cratedb_table_rows", "gauge", "Rows of a table, replicas left out.", ("table",),
     """SELECT table_name, sum(num_docs) FROM sys.shards WHERE schema_name = 'doc' AND "primary" GROUP BY 1"""),
    ("cratedb_table_size_bytes", "gauge", "Size of a table on disk, replicas included.", ("table",),
     "SELECT table_name, sum(size) FROM sys.shards WHERE schema_name = 'doc' GROUP BY 1"),
    ("cratedb_table_severity", "gauge", "Health of a table: 1 green, 2 yellow (a replica is missing), 3 red (data is missing).",
     ("table",),
     "SELECT table_name, max(severity) FROM sys.health WHERE table_schema = 'doc' GROUP BY 1"),
    ("cratedb_missing_shards", "gauge", "Shards of a table without any copy.", ("table",),
     "SELECT table_name, sum(missing_shards) FROM sys.health WHERE table_schema = 'doc' GROUP BY 1"),
    ("cratedb_underreplicated_shards", "gauge", "Shards of a table with too few copies.", ("table",),
     "SELECT table_name, sum(underreplicated_shards) FROM sys.health WHERE table_schema = 'doc' GROUP BY 1"),
    ("cratedb_queries_running", "gauge", "Statements being carried out now.", (),
     "SELECT count(*) FROM sys.jobs"),
    ("cratedb_queries_total", "counter", "Statements carried out, by node and kind.", ("node", "kind"),
     "SELECT node['name'], classification['type'], sum(total_count) FROM sys.jobs_metrics GROUP BY 1, 2"),
    ("cratedb_query_failures_total", "counter", "Statements that failed, by node and kind.", ("node", "kind"),
     "SELECT node['name'], classification['type'], sum(failed_count) FROM sys.jobs_metrics GROUP BY 1, 2"),
    ("cratedb_query_seconds_total", "counter", "Time that statements took together, by node and kind.", ("node", "kind"),
     "SELECT node['name'], classification['type'], sum(sum_of_durations) / 1000.0 FROM sys.jobs_metrics GROUP BY 1, 2"),
]


def series(name, labels, row):
    pairs = ",".join(f'{label}="{escaped(value)}"' for label, value in zip(labels, row))
    return f"{name}{{{pairs}}} {row[-1]}" if pairs else f"{name} {row[-1]}"


def escaped(value):
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def text(cluster):
    started = time.monotonic()
    lines, up, failed = [], 1, 0
    for name, kind, help_text, labels, statement in METRICS:
        try:
            rows = cluster.rows(statement, timeout=NODE_SECONDS)
        except StatementFailed as error:
            # One view that this version does not have must not hide the others.
            print(f"exporter: {name}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        except Unreachable as error:
            print(f"exporter: {error}", file=sys.stderr, flush=True)
            lines, up = [], 0
            break
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        lines += [series(name, labels, row) for row in rows if row[-1] is not None]
    own = [
        ("cratedb_up", "Whether a node answered.", up),
        ("cratedb_exporter_failed_statements", "Statements that CrateDB refused at this scrape.", failed),
        ("cratedb_exporter_duration_seconds", "Time that this scrape took.", round(time.monotonic() - started, 4)),
    ]
    for name, help_text, value in own:
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", f"{name} {value}"]
    return "\n".join(lines) + "\n"


def handler(cluster):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/metrics":
                self.answer(200, text(cluster), "text/plain; version=0.0.4; charset=utf-8")
            elif self.path == "/healthz":
                self.answer(200, "ok\n", "text/plain")
            else:
                self.answer(404, "metrics are at /metrics\n", "text/plain")

        def answer(self, status, body, kind):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    return Handler


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listen", default="127.0.0.1:9108")
    parser.add_argument("--nodes", required=True, help="HTTP addresses, separated by commas")
    parser.add_argument("--user", default="crate")
    parser.add_argument("--password-file", type=Path)
    args = parser.parse_args()
    password = args.password_file and args.password_file.read_text().strip()
    host, port = args.listen.rsplit(":", 1)
    # As the first process of a container it would otherwise ignore the signal to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cluster = Cluster(args.nodes.split(","), args.user, password)
    ThreadingHTTPServer((host, int(port)), handler(cluster)).serve_forever()


if __name__ == "__main__":
    main()
