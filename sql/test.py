#!/usr/bin/env python3
"""Tests of apply.py and exporter.py: on a stand-in for CrateDB's HTTP endpoint, and on a real cluster where the environment
names its nodes.

    [CRATEDB_HTTP=127.0.0.1:4200,…] test.py
"""

import os
import re
import socket
import sys
import threading
import time
import unittest
from http.server import ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "compose/standin"))

import apply
import cratedb_sql
import exporter

SECRETS = {"evenkeel_password": "one", "exporter_password": "another"}
PROMETHEUS_WAITS = 4


class Server(ThreadingHTTPServer):
    # What the kernel takes for one that hangs.
    request_queue_size = 128


class Node:
    """Of the stand-in: one that can be stopped, and can hang."""

    def __init__(self, cluster, address):
        self.cluster, self.address = cluster, address
        host, port = address.rsplit(":", 1)
        self.server = Server((host, int(port)), cratedb_sql.handler(cluster))
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def hang(self):
        """It still takes connections: the kernel does."""
        self.server.shutdown()


def hold_port():
    """A socket that never listens: a server may bind its port too, and nobody who asks for any port is given it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


class OnTheStandIn(unittest.TestCase):
    def setUp(self):
        held = [hold_port() for _ in range(3)]
        self.addCleanup(lambda: [port.close() for port in held])
        self.addresses = [f"127.0.0.1:{port.getsockname()[1]}" for port in held]
        self.state = cratedb_sql.Cluster(self.addresses)
        self.nodes = [Node(self.state, address) for address in self.addresses]
        # What hangs or was stopped is stopped once more, without harm.
        self.addCleanup(lambda: [node.stop() for node in self.nodes])

    def cluster(self, user="crate", password=None):
        return apply.Cluster(list(self.addresses), user, password)

    def make_users(self):
        for statement in apply.statements((HERE / "cratedb-users.sql").read_text()):
            apply.apply(self.cluster(), statement, SECRETS)

    def scrape(self, user="crate", password=None):
        started = time.monotonic()
        lines = exporter.text(self.cluster(user, password)).splitlines()
        self.assertLess(time.monotonic() - started, PROMETHEUS_WAITS)
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def failed_views(self, found):
        return {re.search('"(.*)"', name)[1] for name, value in found.items() if name.startswith("cratedb_exporter_view_failed") and value}

    def test_each_view_is_asked_once_and_gives_every_metric(self):
        found = self.scrape()
        self.assertEqual(self.failed_views(found), set())
        for metric in (metric[0] for metrics in exporter.METRICS.values() for metric in metrics):
            self.assertTrue(any(re.match(rf"{metric}(\{{|$)", name) for name in found), metric)
        self.assertEqual((found["cratedb_up"], found["cratedb_has_master"], found["cratedb_nodes"]), (1, 1, 3))
        self.assertEqual(found['cratedb_shards{table="posts",role="replica",state="STARTED"}'], 3)
        self.assertEqual(found['cratedb_heap_max_bytes{node="cratedb-2"}'], 402653184)
        self.assertEqual(set(exporter.STATEMENTS), set(exporter.METRICS))
        views = [re.findall(r"sys\.\w+", statement) for statement in exporter.STATEMENTS.values()]
        self.assertEqual(len({view for [view] in views}), len(exporter.STATEMENTS))

    def test_the_users_see_of_sys_what_they_need(self):
        self.make_users()
        self.assertEqual(self.failed_views(self.scrape("exporter", "another")), set())
        # Up, and every view that it was not granted is named: nobody takes this for a healthy cluster.
        found = self.scrape("evenkeel", "one")
        self.assertEqual(found["cratedb_up"], 1)
        self.assertEqual(self.failed_views(found), {"health", "jobs_metrics", "operations"})
        self.assertFalse([name for name in found if name.startswith("cratedb_table_severity")])
        self.cluster("evenkeel", "one").rows("SELECT count(*) FROM sys.nodes")

    def test_a_node_that_hangs_is_named_and_the_others_answer(self):
        for node in self.nodes[:2]:
            node.hang()
            found = self.scrape()
            self.assertEqual((found["cratedb_up"], self.failed_views(found)), (1, set()))
            self.assertEqual(found[f'cratedb_node_answers{{node="{node.address}"}}'], 0)

    def test_without_a_master_it_says_so_though_nodes_answer(self):
        self.scrape()
        for node in self.nodes[1:]:
            node.stop()
        found = self.scrape()
        # The real server counts those of before.
        self.assertEqual((found["cratedb_up"], found["cratedb_has_master"], found["cratedb_nodes"]), (1, 0, 3))

    def test_down_is_when_no_node_answers(self):
        for node in self.nodes:
            node.stop()
        found = self.scrape()
        self.assertEqual(found["cratedb_up"], 0)
        self.assertFalse([name for name in found if name.startswith(("cratedb_nodes", "cratedb_has_master", "cratedb_exporter_view"))])

    def test_a_user_that_one_node_made_without_saying_so_is_there_for_the_next(self):
        cluster = self.cluster()
        cluster.rows = sent_twice(cluster.rows)
        self.assertEqual(apply.apply(cluster, "CREATE USER evenkeel", SECRETS), "user evenkeel is there")
        self.assertEqual(list(self.state.granted), ["evenkeel"])

    def test_a_secret_that_is_missing_is_named(self):
        with self.assertRaisesRegex(apply.StatementFailed, "--secret exporter_password=FILE"):
            apply.with_secrets("ALTER USER exporter SET (password = :exporter_password)", {})
        self.assertEqual(apply.with_secrets("SELECT a::text, :a", {"a": "it's"}), "SELECT a::text, 'it''s'")


def sent_twice(rows):
    """A statement that changes something reaches a second node, because the first broke off after it had done it."""
    def sent(statement, *args, **more):
        if statement.startswith("CREATE"):
            rows(statement, *args, **more)
        return rows(statement, *args, **more)

    return sent


@unittest.skipUnless(os.environ.get("CRATEDB_HTTP"), "NOT RUN: set CRATEDB_HTTP to the nodes of a real cluster")
class OnCrateDb(unittest.TestCase):
    def test_each_view_answers(self):
        cluster = apply.Cluster(os.environ["CRATEDB_HTTP"].split(","))
        for view, statement in exporter.STATEMENTS.items():
            with self.subTest(view):
                list(exporter.SERIES[view](cluster.rows(statement)))

    def test_the_files_may_run_again(self):
        cluster = apply.Cluster(os.environ["CRATEDB_HTTP"].split(","))
        for name in ("cratedb.sql", "cratedb-users.sql") * 2:
            for statement in apply.statements((HERE / name).read_text()):
                apply.apply(cluster, statement, SECRETS)


if __name__ == "__main__":
    unittest.main()
