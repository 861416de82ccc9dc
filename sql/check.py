#!/usr/bin/env python3
"""Proves that CrateDB's own grammar accepts every statement that is sent to it: those of the .sql files here, of
the exporter, of the operating notes and, given with --rust, those that stand in the application's source.

    check.py [--rust app/src/data/cratedb.rs …]

Needs `cratedb-sqlparse` (requirements.txt), which is generated from CrateDB's grammar. The grammar does not know
types and functions: what passes here may still be refused by a server, which only a server can tell.
"""

import argparse
import re
import sys
from pathlib import Path

try:
    from cratedb_sqlparse import sqlparse
except ImportError:
    sys.exit("sql/check.py: cratedb-sqlparse is missing: pip install -r sql/requirements.txt")

import apply
import exporter

HERE = Path(__file__).resolve().parent
SECRETS = ["evenkeel_password", "exporter_password"]
# What CrateDB's grammar is known to refuse. If it ever accepts one, its parser has stopped telling us anything.
REFUSED = [
    "ROLLBACK",
    "SAVEPOINT a",
    "DELETE FROM posts WHERE id = $1 RETURNING id",
    "SELECT id FROM posts WHERE (created_ms, id) < ($1, $2)",
    "CREATE INDEX posts_newest ON posts (created_ms)",
    "CREATE TABLE t (a TEXT UNIQUE)",
]
VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "REFRESH", "ALTER", "GRANT", "SET", "DROP", "OPTIMIZE")


def refusal(statement):
    """Why the grammar refuses a statement, or None."""
    try:
        parsed = sqlparse(statement, raise_exception=True)
    except Exception as error:
        return str(error).split("\n")[0]
    return None if len(parsed) == 1 else f"is {len(parsed)} statements, not one"


def in_rust(source):
    """String literals of Rust source that read as SQL."""
    literals = re.findall(r'r#"(.*?)"#|"((?:[^"\\]|\\.)*)"', source, re.S)
    for raw, plain in literals:
        text = raw or re.sub(r"\\\n\s*", "", plain).replace('\\"', '"')
        if text.lstrip().split(" ")[0] in VERBS and len(text.split()) > 1:
            yield from apply.statements(text)


def postgres_rules(path):
    """Column for column the same tables in both files."""
    columns = lambda text: {
        name: [line.split()[0] for line in body.splitlines() if re.match(r"\s+[a-z]", line)]
        for name, body in re.findall(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*?)\n\)", text, re.S)
    }
    ours, theirs = columns((HERE / "cratedb.sql").read_text()), columns(path.read_text())
    for table in sorted(ours.keys() | theirs.keys()):
        expected = [column for column in ours.get(table, []) if column != "month"]
        if expected != theirs.get(table, []):
            yield f"table {table}: cratedb.sql has {expected}, {path.name} has {theirs.get(table)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rust", nargs="*", type=Path, default=[], help="files whose SQL goes to CrateDB")
    args = parser.parse_args()

    groups = {
        name: [apply.with_secrets(statement, {name: "x" for name in SECRETS}) for statement in apply.statements((HERE / name).read_text())]
        for name in ("cratedb.sql", "cratedb-users.sql")
    }
    groups["exporter.py"] = list(exporter.STATEMENTS.values())
    groups["apply.py"] = ["SELECT count(*) FROM sys.nodes", "SELECT name FROM sys.users WHERE name = ?"]
    notes = (HERE / "../compose/README.md").read_text()
    groups["operating notes"] = re.findall(r'`sql "([^`]*)"`', notes)
    for path in args.rust:
        groups[path.name] = list(in_rust(path.read_text()))

    passed, failures = 0, []
    for group, found in groups.items():
        if not found:
            failures.append(f"{group}: no statement found")
        for statement in found:
            why = refusal(statement)
            if why:
                failures.append(f"{group}: {why}\n    {statement}")
            else:
                passed += 1
    for statement in REFUSED:
        if refusal(statement) is None:
            failures.append(f"the parser accepts what CrateDB refuses: {statement}")
    failures += postgres_rules(HERE / "postgres.sql")

    for failure in failures:
        print(f"sql: FAILED {failure}")
    counts = ", ".join(f"{name} {len(found)}" for name, found in groups.items())
    print(f"sql: {passed} statements accepted by CrateDB's grammar ({counts}), {len(failures)} failures; parsed, never executed")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
