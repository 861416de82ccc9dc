#!/usr/bin/env python3
"""Runs SQL files against a CrateDB cluster over HTTP, once more than half of its nodes are there.

    apply.py --nodes cratedb-1:4200,cratedb-2:4200,cratedb-3:4200 cratedb.sql
    apply.py --nodes … --secret evenkeel_password=FILE --secret exporter_password=FILE cratedb.sql cratedb-users.sql

Needs nothing but Python, which the image of CrateDB has. Running it again changes nothing. Tables need no more than
that: the copies that belong on a node that is away are made when it comes. Ends with 1 as soon as a statement is
refused, or when the cluster is not ready in time, and says which and why.
"""

import argparse
import base64
import http.client
import json
import re
import signal
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path


def statements(text):
    """The statements of a file, without comments. A semicolon ends one; ours contain none within strings."""
    lines = (line.split("--", 1)[0].rstrip() for line in text.splitlines())
    return [part.strip() for part in "\n".join(line for line in lines if line).split(";") if part.strip()]


def table_name(statement):
    found = re.match(r"CREATE TABLE IF NOT EXISTS (\w+)", statement)
    return found and found.group(1)


class Cluster:
    """Whichever node answers, first the one that did last time; statements here may be sent twice, so the next node may
    repeat what one broke off."""

    def __init__(self, nodes, user="crate", password=None):
        self.nodes = nodes
        secret = base64.b64encode(f"{user}:{password}".encode()).decode() if password else None
        self.headers = {"Content-Type": "application/json", "X-User": user}
        if secret:
            self.headers["Authorization"] = f"Basic {secret}"

    def rows(self, statement, *args, timeout=30, nodes=None):
        body = json.dumps({"stmt": statement, "args": list(args)}).encode()
        failures = []
        for node in nodes or list(self.nodes):
            request = urllib.request.Request(f"http://{node}/_sql", data=body, headers=self.headers)
            try:
                with urllib.request.urlopen(request, timeout=timeout) as answer:
                    found = json.load(answer).get("rows", [])
                # A new list, since others may be walking along the one before.
                self.nodes = [node, *(other for other in self.nodes if other != node)]
                return found
            except urllib.error.HTTPError as error:
                why = reason(error)
                # It has no master, or has not recovered its tables; another node may belong to a cluster that has. Or it
                # ends, amid its answer.
                if error.code != 503 and "blocked by: [" not in why and not why.startswith("HTTP 5"):
                    raise StatementFailed(why) from error
                failures.append(f"{node}: {why}")
            # Silence, or half an answer of a node that ends, or what is none.
            except (OSError, http.client.HTTPException, ValueError) as error:
                failures.append(f"{node}: {error}")
        raise Unreachable("; ".join(failures))


class StatementFailed(Exception):
    """The cluster answered, and said no."""


class Unreachable(Exception):
    """No node answered, or none is ready: it passes."""


def reason(error):
    text = ""
    try:
        text = error.read().decode(errors="replace")
        return json.loads(text)["error"]["message"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return f"HTTP {error.code}: {text[:200]}"


def patiently(attempt, deadline):
    """What `attempt` returns, which is tried until the cluster is ready for it."""
    told = time.monotonic()
    while True:
        try:
            return attempt()
        except Unreachable as error:
            if time.monotonic() > deadline:
                raise Unreachable(f"gave up: {error}") from error
            if time.monotonic() - told > 5:
                told = time.monotonic()
                print(f"cratedb-init: waiting: {error}", flush=True)
            time.sleep(1)


def find_cluster(cluster, count):
    """Each node is asked: one that is cut off from the others sees too few."""
    states = []
    for node in list(cluster.nodes):
        try:
            found = cluster.rows("SELECT count(*) FROM sys.nodes", timeout=5, nodes=[node])[0][0]
            if found >= count:
                return
            states.append(f"{node} sees {found} of {count} nodes")
        except (StatementFailed, Unreachable) as error:
            states.append(str(error))
    raise Unreachable("; ".join(states))


def with_secrets(statement, secrets):
    def quoted(found):
        if found[1] not in secrets:
            raise StatementFailed(f"give the secret with --secret {found[1]}=FILE")
        return "'" + secrets[found[1]].replace("'", "''") + "'"

    return re.sub(r"(?<!:):(\w+)", quoted, statement)


def apply(cluster, statement, secrets):
    user = re.match(r"CREATE USER (\w+)", statement)
    is_there = lambda: user and cluster.rows("SELECT name FROM sys.users WHERE name = ?", user.group(1))
    # There is no IF NOT EXISTS for users.
    if is_there():
        return f"user {user.group(1)} is there"
    try:
        cluster.rows(with_secrets(statement, secrets))
    except StatementFailed:
        # A node may have made the user and failed to say so, and the next one was asked the same.
        if is_there():
            return f"user {user.group(1)} is there"
        raise
    return " ".join(statement.split("(")[0].split()[:8]) + ": done"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", required=True, help="HTTP addresses, separated by commas")
    parser.add_argument("--count", type=int, help="nodes to wait for [default: more than half of those that --nodes names]")
    parser.add_argument("--wait-seconds", type=int, default=180)
    parser.add_argument("--secret", action="append", default=[], metavar="NAME=FILE", help="what :NAME stands for in the files")
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    nodes = args.nodes.split(",")
    cluster = Cluster(nodes)
    # As the first process of a container it would otherwise ignore the signal to stop.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for secret in args.secret:
        if "=" not in secret:
            parser.error(f"--secret {secret}: write NAME=FILE, such as evenkeel_password=/run/secrets/cratedb_password")
    secrets = {name: Path(file).read_text().strip() for name, file in (secret.split("=", 1) for secret in args.secret)}
    deadline = time.monotonic() + args.wait_seconds
    try:
        patiently(lambda: find_cluster(cluster, args.count or len(nodes) // 2 + 1), deadline)
        for path in args.files:
            for statement in statements(path.read_text()):
                try:
                    done = patiently(lambda: apply(cluster, statement, secrets), deadline)
                    print(f"cratedb-init: {path.name}: {done}", flush=True)
                except StatementFailed as error:
                    sys.exit(f"cratedb-init: {path.name}: {error}\n  in: {statement}")
    except Unreachable as error:
        sys.exit(f"cratedb-init: {error}")


if __name__ == "__main__":
    main()
