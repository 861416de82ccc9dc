#!/usr/bin/env python3
"""Checks dashboards and alert rules without Grafana.

    check.py                          shape, units, data source, no overlap; every expression and rule by promtool
    check.py --metrics FILE …         and: every metric named exists in these dumps of /metrics
    check.py --live URL               and: every query of every panel returns data from this Prometheus
             [--without redis,cratedb]   leaving out metrics of parts that do not run there, which is printed

Needs promtool (Debian: prometheus).
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import dashboards

HERE = Path(__file__).resolve().parent
# What a query may lack data for on a day when nothing is wrong.
QUIET = {"Failures and retries": ["> 0"], "Handshakes": ["> 0"], "Errors and refusals": ["refusals", "responses", "http2"], "Slots, as each node sees them": ["> 0"], "Time of a command": ["cmd"]}
OWN_OF_PROMETHEUS = {"up", "ALERTS"}
WORDS = set("by without on ignoring group_left group_right and or unless offset bool le inf nan".split())


def plain(expr, variables):
    """An expression as Prometheus takes it, without Grafana's variables."""
    for name, value in {"__rate_interval": "1m", "__interval": "15s", "__range": "15m", **{v: ".+" for v in variables}}.items():
        expr = expr.replace(f"${name}", value)
    return expr


def metrics_in(expr):
    """Names of the metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\{[^}]*\}", "{", bare)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    # A digit before a letter is a duration or a number.
    names = re.findall(r"(?<![\w.:$])([a-zA-Z_:][\w:]*)(?!\s*\(|[\w:])", bare)
    return {name for name in names if name not in WORDS and not re.fullmatch(r"\d+\w*", name)}


def queries(dashboard):
    """(place, expression, whether it is asked of one moment) of every panel and annotation."""
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], plain(target["expr"], variables), target["instant"]
    for annotation in dashboard["annotations"]["list"]:
        yield f"annotation {annotation['name']}", plain(annotation["expr"], variables), False


def shape(name, dashboard):
    if dashboard["id"] is not None:
        yield f"{name}: has an id of a database"
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", dashboard["uid"]):
        yield f"{name}: uid {dashboard['uid']!r} is no uid"
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        yield f"{name}: two panels have one id"
    taken = {}
    for panel in dashboard["panels"]:
        where = f"{name}: {panel['title']}"
        grid = panel["gridPos"]
        if grid["x"] < 0 or grid["x"] + grid["w"] > 24 or grid["w"] < 1 or grid["h"] < 1:
            yield f"{where}: lies outside of 24 columns"
        for cell in ((x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])):
            if cell in taken:
                yield f"{where}: lies over {taken[cell]}"
                break
            taken[cell] = panel["title"]
        if panel["type"] == "row":
            continue
        if not panel["description"]:
            yield f"{where}: says nothing of what it shows"
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"{where}: has no unit"
        if not panel["targets"]:
            yield f"{where}: asks for nothing"
        if any(target["instant"] != (panel["type"] == "stat") for target in panel["targets"]):
            yield f"{where}: single figures are of this moment, charts of a stretch of time"
        for part in [panel, *panel["targets"]]:
            if part["datasource"] != {"type": "prometheus", "uid": "prometheus"}:
                yield f"{where}: has another data source"
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] != "row"]
    for heading in {title for title in titles if titles.count(title) > 2}:
        yield f"{name}: {heading} is the title of too many panels"


def provisioning():
    source = (HERE / "provisioning/datasources/prometheus.yml").read_text()
    if not re.search(r"^\s*uid: prometheus$", source, re.M):
        yield "provisioning: the data source has another uid than the dashboards ask for"


def promtool(*args, cwd=HERE):
    run = subprocess.run(["promtool", *args], capture_output=True, text=True, cwd=cwd)
    return None if run.returncode == 0 else (run.stdout + run.stderr).strip()


def by_promtool(found):
    """Every expression as a recording rule, the alert rules, their tests, and Prometheus's own configuration."""
    rules = {"groups": [{"name": "panels", "rules": [
        {"record": f"panel:query{n}", "expr": expr} for n, (_, _, expr, _) in enumerate(found)]}]}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(rules, file)
        file.flush()
        why = promtool("check", "rules", file.name)
        if why:
            for line in why.splitlines():
                number = re.search(r"rule (\d+)", line)
                place = "{}: {}".format(*found[int(number[1]) - 1][:2]) if number else "panels"
                if "could not parse" in line or "error" in line.lower():
                    yield f"{place}: {line.strip()}"
    for args in (("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")):
        why = promtool(*args)
        if why:
            yield f"promtool {' '.join(args)}: {why}"
    why = promtool("check", "config", "--syntax-only", str(HERE / "../compose/prometheus/prometheus.yml"))
    if why:
        yield f"prometheus.yml: {why}"


def alert_queries():
    """(alert or record, expression), without a YAML parser: expressions are one line, or a block of one line."""
    text = (HERE / "alerts.yml").read_text()
    for name, expr in re.findall(r"- (?:alert|record): (\S+)\n(?:\s+#.*\n)*\s+expr: (?:\|\n\s+)?(.*)\n", text):
        yield name, expr


def untested_alerts():
    tests = (HERE / "alerts_test.yml").read_text()
    for name in re.findall(r"- alert: (\S+)", (HERE / "alerts.yml").read_text()):
        if not re.search(rf"alertname: {name}\n\s+exp_alerts:\n", tests):
            yield f"alerts: no test makes {name} fire"


def asked(url, path, **parameters):
    query = urllib.parse.urlencode(parameters)
    try:
        with urllib.request.urlopen(f"{url}/api/v1/{path}?{query}", timeout=20) as answer:
            return json.load(answer)["data"]
    except urllib.error.HTTPError as error:
        raise SystemExit(f"grafana: {url} refuses {parameters}: {error.read().decode()[:300]}")


def has_numbers(url, expr, instant, seconds=900):
    now = time.time()
    if instant:
        values = [series["value"] for series in asked(url, "query", query=expr, time=now)["result"]]
    else:
        result = asked(url, "query_range", query=expr, start=now - seconds, end=now, step=5)["result"]
        values = [pair for series in result for pair in series["values"]]
    return any(value not in ("NaN", "+Inf", "-Inf") for _, value in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--metrics", nargs="*", type=Path, default=[], help="dumps of /metrics")
    parser.add_argument("--live", metavar="URL", help="a Prometheus that scrapes real processes")
    parser.add_argument("--without", default="", help="prefixes of metrics that are not there, separated by commas")
    args = parser.parse_args()
    absent = tuple(f"{prefix}_" for prefix in args.without.split(",") if prefix)

    if not shutil.which("promtool"):
        sys.exit("grafana: NOT CHECKED: promtool is missing (Debian: apt-get install prometheus)")
    files = {path.stem: json.loads(path.read_text()) for path in sorted((HERE / "dashboards").glob("*.json"))}
    failures = [f"{name}.json is not what dashboards.py says: run it" for name, one in dashboards.ALL.items()
                if files.get(name) != json.loads(dashboards.text(one))]
    for key in ("uid", "title"):
        values = [one[key] for one in files.values()]
        failures += [f"two dashboards have the {key} {value}" for value in set(values) if values.count(value) > 1]
    for name, one in files.items():
        failures += shape(name, one)
    failures += provisioning()
    found = [(name, *query) for name, one in files.items() for query in queries(one)]
    failures += by_promtool(found)
    failures += untested_alerts()
    rules = list(alert_queries())
    named = {metric for _, _, expr, _ in found for metric in metrics_in(expr)} | {metric for _, expr in rules for metric in metrics_in(expr)}
    named -= OWN_OF_PROMETHEUS | {name for name, _ in rules}
    panels = sum(panel["type"] != "row" for one in files.values() for panel in one["panels"])
    print(f"grafana: {len(files)} dashboards, {panels} panels, {len(found)} queries, {len(rules)} rules, {len(named)} metrics named")

    if args.metrics:
        there = {match for path in args.metrics for match in re.findall(r"^([a-zA-Z_:][\w:]*)", path.read_text(), re.M)}
        unknown = sorted(metric for metric in named if metric not in there and not metric.startswith(absent or ("\0",)))
        failures += [f"no dump has the metric {metric}" for metric in unknown]
        print(f"grafana: {len(named) - len(unknown)} of the metrics named are in the dumps" + (f", leaving out {', '.join(absent)}" if absent else ""))

    if args.live:
        there = set(asked(args.live, "label/__name__/values"))
        missing = sorted(metric for metric in named if metric not in there and not metric.startswith(absent or ("\0",)))
        failures += [f"Prometheus has no metric {metric}" for metric in missing]
        answered, quiet, left_out = 0, [], 0
        for name, place, expr, instant in found:
            if absent and any(metric.startswith(absent) for metric in metrics_in(expr)):
                left_out += 1
            elif has_numbers(args.live, expr, instant):
                answered += 1
            elif place.startswith("annotation") or any(word in expr for word in QUIET.get(place, [])):
                quiet.append(f"{name}: {place}")
            else:
                failures.append(f"{name}: {place}: no data for {expr}")
        print(f"grafana: live: {answered} of {len(found)} queries return data; {left_out} left out with {', '.join(absent) or 'nothing'}; "
              f"{len(quiet)} had nothing to tell: {', '.join(sorted(set(quiet))) or '-'}")

    for failure in failures:
        print(f"grafana: FAILED {failure}")
    print(f"grafana: {len(failures)} failures")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
