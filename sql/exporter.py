#!/usr/bin/env python3
"""What CrateDB says of itself in its `sys` tables, for Prometheus: nodes, heap, shards, health of each table.

    exporter.py --listen 0.0.0.0:9108 --nodes cratedb-1:4200,cratedb-2:4200,cratedb-3:4200

One for the whole cluster, since every node answers for all. Needs nothing but Python, which the image of CrateDB
has; the exporter that CrateDB's makers publish is a Java agent that is not in it. The user needs `DQL` on the schema
`sys`; without it CrateDB says that there is no such schema.

A scrape asks every node for `/`, and then one of those that answered for each view, all views at once, so that it ends
within the four seconds that Prometheus waits even while a node hangs. `cratedb_up` is 0 only when no node answers. A view
that fails or takes too long is named by `cratedb_exporter_view_failed`, and its series are left out.
"""

import argparse
import http.client
import signal
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from apply import Cluster, StatementFailed, Unreachable

# For `/`, of all nodes at once.
NODE_SECONDS = 1
# For each view, of all views at once. A node that hangs holds `sys` tables up for more than a second.
VIEW_SECONDS = 2.2

# Metrics by view: name, type, help, labels. A view is asked once, and gives rows of metric, labels, value.
METRICS = {
    "nodes": [
        ("cratedb_nodes", "gauge", "Nodes that are part of the cluster. Without a master, those of before.", ()),
        ("cratedb_heap_used_bytes", "gauge", "Java heap in use, by node.", ("node",)),
        ("cratedb_heap_max_bytes", "gauge", "Java heap at most, by node.", ("node",)),
        ("cratedb_disk_used_bytes", "gauge", "Space in use on the disks of a node, whoever uses it.", ("node",)),
        ("cratedb_disk_size_bytes", "gauge", "Size of the disks of a node.", ("node",)),
        ("cratedb_load1", "gauge", "Load average over one minute, by node.", ("node",)),
        ("cratedb_connections_open", "gauge", "Open client connections of the PostgreSQL wire protocol, by node.", ("node",)),
    ],
    "shards": [
        ("cratedb_shards", "gauge", "Shards, by table, role (primary or replica) and state.", ("table", "role", "state")),
        ("cratedb_table_rows", "gauge", "Rows of a table, replicas left out.", ("table",)),
        ("cratedb_table_size_bytes", "gauge", "Size of a table on disk, replicas included.", ("table",)),
    ],
    "health": [
        ("cratedb_table_severity", "gauge", "Health of a table: 1 green, 2 yellow (a replica is missing), 3 red (data is missing).", ("table",)),
        ("cratedb_missing_shards", "gauge", "Shards of a table without any copy.", ("table",)),
        ("cratedb_underreplicated_shards", "gauge", "Shards of a table with too few copies.", ("table",)),
    ],
    "jobs_metrics": [
        ("cratedb_queries_total", "counter", "Statements carried out, by node and kind.", ("node", "kind")),
        ("cratedb_query_failures_total", "counter", "Statements that failed, by node and kind.", ("node", "kind")),
        ("cratedb_query_seconds_total", "counter", "Time that statements took together, by node and kind.", ("node", "kind")),
    ],
    "operations": [
        ("cratedb_operations_running", "gauge", "Parts of statements being carried out now, by node.", ("node",)),
        ("cratedb_operation_oldest_seconds", "gauge", "How long the oldest of them has been running, by node.", ("node",)),
    ],
}

STATEMENTS = {
    "nodes":
        "SELECT name, heap['used'], heap['max'], fs['total']['used'], fs['total']['size'], load['1'], connections['psql']['open']"
        " FROM sys.nodes",
    "shards":
        """SELECT table_name, "primary", state, count(*), sum(num_docs), sum(size) FROM sys.shards"""
        """ WHERE schema_name = 'doc' GROUP BY 1, 2, 3""",
    "health":
        "SELECT table_name, max(severity), sum(missing_shards), sum(underreplicated_shards) FROM sys.health"
        " WHERE table_schema = 'doc' GROUP BY 1",
    "jobs_metrics":
        "SELECT node['name'], classification['type'], sum(total_count), sum(failed_count), sum(sum_of_durations) / 1000.0"
        " FROM sys.jobs_metrics GROUP BY 1, 2",
    "operations":
        "SELECT node['name'], count(*), (CAST(now() AS BIGINT) - CAST(min(started) AS BIGINT)) / 1000.0 FROM sys.operations GROUP BY 1",
}


def nodes(rows):
    yield "cratedb_nodes", (), len(rows)
    per_node = [name for name, _, _, labels in METRICS["nodes"] if labels]
    for node, *values in rows:
        yield from ((name, (node,), value) for name, value in zip(per_node, values))


def shards(rows):
    documents, sizes = {}, {}
    for table, primary, state, count, found, size in rows:
        yield "cratedb_shards", (table, "primary" if primary else "replica", state), count
        sizes[table] = sizes.get(table, 0) + (size or 0)
        if primary:
            documents[table] = documents.get(table, 0) + (found or 0)
    yield from (("cratedb_table_rows", (table,), value) for table, value in documents.items())
    yield from (("cratedb_table_size_bytes", (table,), value) for table, value in sizes.items())


def plain(view):
    """Rows of a metric in each column that is not a label."""
    names, labels = [metric[0] for metric in METRICS[view]], len(METRICS[view][0][3])
    return lambda rows: ((name, row[:labels], value) for row in rows for name, value in zip(names, row[labels:]))


SERIES = {"nodes": nodes, "shards": shards, **{view: plain(view) for view in ("health", "jobs_metrics", "operations")}}


def series(name, labels, values, value):
    pairs = ",".join(f'{label}="{escaped(text)}"' for label, text in zip(labels, values))
    return f"{name}{{{pairs}}} {value}" if pairs else f"{name} {value}"


def escaped(value):
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def state(cluster, node):
    """What a node answers at `/`: 200, 503 without a master, 401 to whom it does not know; None for nothing."""
    request = urllib.request.Request(f"http://{node}/", headers=cluster.headers)
    try:
        with urllib.request.urlopen(request, timeout=NODE_SECONDS) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None


def asked(cluster, view, there):
    """The rows of a view, or None; and how long that took."""
    started, rows = time.monotonic(), None
    try:
        rows = cluster.rows(STATEMENTS[view], timeout=VIEW_SECONDS, nodes=there)
    except (StatementFailed, Unreachable) as error:
        print(f"exporter: {view}: {error}", file=sys.stderr, flush=True)
    return rows, time.monotonic() - started


def text(cluster):
    started, every = time.monotonic(), sorted(cluster.nodes)
    with ThreadPoolExecutor(len(every) + len(STATEMENTS)) as threads:
        states = dict(zip(every, threads.map(lambda node: state(cluster, node), every)))
        there = [node for node in every if states[node] is not None]
        # One that has a master first, since it knows most; one alone, since a second would be asked too late.
        there = sorted(there, key=lambda node: states[node] != 200)[:1]
        answers = dict(zip(STATEMENTS, threads.map(lambda view: asked(cluster, view, there), STATEMENTS))) if there else {}
    lines = []
    for view, (rows, _) in answers.items():
        found = list(SERIES[view](rows or []))
        for name, kind, help_text, labels in METRICS[view] if rows is not None else []:
            lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
            lines += [series(name, labels, values, value) for metric, values, value in found if metric == name and value is not None]
    own = [
        ("cratedb_up", "Whether a node answers.", [((), int(bool(there)))]),
        ("cratedb_node_answers", "Whether a node answers, by its address.", [((node,), int(states[node] is not None)) for node in every]),
        ("cratedb_exporter_view_failed", "Whether CrateDB refused the statement of a view at this scrape, or took too long.",
         [((view,), int(rows is None)) for view, (rows, _) in answers.items()]),
        ("cratedb_exporter_view_duration_seconds", "Time that the statement of a view took.",
         [((view,), round(took, 4)) for view, (_, took) in answers.items()]),
        ("cratedb_exporter_duration_seconds", "Time that this scrape took.", [((), round(time.monotonic() - started, 4))]),
    ]
    if {200, 503} & set(states.values()):
        own.append(("cratedb_has_master", "Whether a node belongs to a cluster with a master. Without one every write fails.",
                    [((), int(200 in states.values()))]))
    for name, help_text, values in own:
        labels = ("node",) if name == "cratedb_node_answers" else ("view",)
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} gauge", *(series(name, labels, of, value) for of, value in values)]
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
