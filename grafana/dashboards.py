#!/usr/bin/env python3
"""The four dashboards, as short as they can be said; writes them to dashboards/*.json, which Grafana reads.

    dashboards.py            write them
    dashboards.py --check    fail if what is written is not what this says

Change this file, not the JSON. Panels flow from left to right, 24 columns wide, one line for each list.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
GREEN, BLUE, YELLOW, ORANGE, RED, GREY, PURPLE = "green", "blue", "yellow", "orange", "red", "#8e8e8e", "purple"


def targets(queries, instant=False):
    return [
        {"refId": chr(65 + n), "datasource": SOURCE, "expr": " ".join(expr.split()), "legendFormat": legend,
         "range": not instant, "instant": instant}
        for n, (expr, legend) in enumerate(queries)
    ]


def panel(kind, title, queries, unit, width, height, help_text, defaults=None, options=None, instant=False):
    return {
        "type": kind, "title": title, "description": help_text, "datasource": SOURCE,
        "gridPos": {"w": width, "h": height}, "targets": targets(queries, instant),
        "fieldConfig": {"defaults": {"unit": unit, **(defaults or {})}, "overrides": []},
        "options": options or {},
    }


def lines(title, unit, *queries, width=8, height=8, help_text="", stack=None, most=None, bars=False):
    """A chart over time. `stack` is "normal" or "percent"."""
    custom = {
        "drawStyle": "bars" if bars else "line", "lineWidth": 1, "fillOpacity": 60 if bars else 25 if stack else 8,
        "showPoints": "never", "spanNulls": False, "stacking": {"mode": stack or "none", "group": "A"},
    }
    defaults = {"min": 0, "custom": custom}
    if most is not None:
        defaults["max"] = most
    options = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
               "tooltip": {"mode": "multi", "sort": "desc"}}
    return panel("timeseries", title, queries, unit, width, height, help_text, defaults, options)


def number(title, unit, query, width=3, height=4, help_text="", steps=((None, GREEN),), name=False, decimals=None):
    """One figure, coloured by the thresholds in `steps`; with `name`, the name of the series instead of its value. It is
    asked of this moment: out of a stretch of time, what is gone would stay on show."""
    defaults = {"thresholds": {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]},
                "color": {"mode": "thresholds"}}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {"colorMode": "value", "graphMode": "none", "justifyMode": "auto",
               "textMode": "name" if name else "auto",
               "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    expr, legend = query if isinstance(query, tuple) else (query, "")
    return panel("stat", title, [(expr, legend)], unit, width, height, help_text, defaults, options, instant=True)


def states(title, query, legend, meaning, width=12, height=8, help_text=""):
    """A band over time for each series; `meaning` gives the word and the colour of each value."""
    mappings = [{"type": "value", "options": {
        str(value): {"text": word, "color": colour, "index": n} for n, (value, (word, colour)) in enumerate(meaning.items())}}]
    defaults = {"mappings": mappings, "color": {"mode": "thresholds"}, "custom": {"fillOpacity": 80, "lineWidth": 0},
                "thresholds": {"mode": "absolute", "steps": [{"value": None, "color": GREY}]}}
    options = {"mergeValues": True, "showValue": "auto", "rowHeight": 0.85,
               "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}, "tooltip": {"mode": "single"}}
    return panel("state-timeline", title, [(query, legend)], "none", width, height, help_text, defaults, options)


def one_of(metric, label, words, selector=""):
    """A number for the word whose series is 1, as `states` wants it."""
    each = (f'{metric}{{{selector}{label}="{word}"}} * {value}' for value, word in words.items())
    return " or ".join(each)


def marks(name, expr, title, colour, step="15s"):
    """A vertical line in every chart wherever the query has a value."""
    return {"name": name, "datasource": SOURCE, "enable": True, "hide": False, "iconColor": colour, "expr": expr, "step": step,
            "titleFormat": title, "textFormat": "", "tagKeys": "", "useValueForTime": False}


def variable(name, label, metric):
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1,
        "query": {"query": f"label_values({metric}, {name})", "refId": name}, "definition": f"label_values({metric}, {name})",
        "includeAll": True, "allValue": ".+", "multi": True, "current": {"text": "All", "value": "$__all"}, "options": [], "hide": 0,
    }


def dashboard(uid, title, description, sections, annotations=(), variables=()):
    panels, y, number_of = [], 0, 1
    for heading, *bands in sections:
        panels.append({"id": number_of, "type": "row", "title": heading, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y, number_of = y + 1, number_of + 1
        for band in bands:
            x = 0
            for one in band:
                size = one["gridPos"]
                panels.append({"id": number_of, **one, "gridPos": {"x": x, "y": y, **size}})
                x, number_of = x + size["w"], number_of + 1
            y += max(one["gridPos"]["h"] for one in band)
    links = [{"type": "dashboards", "title": "Evenkeel", "tags": ["evenkeel"], "asDropdown": False, "includeVars": False,
              "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": ""}]
    return {
        "id": None, "uid": uid, "title": title, "description": description, "tags": ["evenkeel"], "schemaVersion": 42,
        "version": 1, "editable": True, "graphTooltip": 1, "refresh": "5s", "timezone": "browser", "time": {"from": "now-15m", "to": "now"},
        "annotations": {"list": list(annotations)}, "templating": {"list": list(variables)}, "links": links, "panels": panels,
    }


P = 'pool=~"$pool"'
RATE = "$__rate_interval"
STATUS = {1: "healthy", 2: "unknown", 3: "draining", 4: "removing", 5: "ejected", 6: "unhealthy", 7: "down"}
STATUS_SHOWN = dict(zip(STATUS, [("healthy", GREEN), ("unknown", GREY), ("draining", BLUE), ("removing", PURPLE), ("ejected", ORANGE),
                                 ("unhealthy", RED), ("down", "dark-red")]))

SWITCHES = marks("Algorithm switched", "evenkeel_pool_algorithm == 1 and evenkeel_pool_algorithm offset 15s == 0", "{{pool}}: {{algorithm}}", PURPLE)
FIRING = marks("Alert", 'ALERTS{alertstate="firing"}', "{{alertname}} {{backend}}{{instance}}", RED)


def percentile(quantile, metric, by, selector=""):
    return f"histogram_quantile({quantile}, sum by ({', '.join(['le', *by])}) (rate({metric}_bucket{{{selector}}}[{RATE}])))"


OVERVIEW = dashboard(
    "evenkeel-overview", "Evenkeel: overview", "What the balancer does with the requests it gets, and how its backends are.",
    [
        ("Now", [
            number("Requests", "reqps", f"sum(rate(evenkeel_requests_total{{{P}}}[{RATE}]))", help_text="Answered a second, all routes.", steps=((None, BLUE),)),
            number("Failing", "percentunit", f'sum(rate(evenkeel_requests_total{{{P}, code="5xx"}}[{RATE}])) / sum(rate(evenkeel_requests_total{{{P}}}[{RATE}]))',
                   help_text="Share of requests answered 5xx.", steps=((None, GREEN), (0.001, YELLOW), (0.01, RED)), decimals=2),
            number("99th percentile", "s", percentile(0.99, "evenkeel_request_duration_seconds", [], P),
                   help_text="99 of 100 requests are answered faster.", steps=((None, GREEN), (0.5, YELLOW), (1, RED))),
            number("In flight", "none", f"sum(evenkeel_backend_in_flight{{{P}}})", help_text="Exchanges on all backends now.", steps=((None, BLUE),)),
            number("Healthy backends", "none", f'sum(evenkeel_backend_status{{{P}, status="healthy"}})', steps=((None, RED), (1, YELLOW), (2, GREEN)),
                   help_text="Backends that get requests."),
            number("Panic", "none", f"max(evenkeel_pool_panic{{{P}}})", help_text="1 while a pool has so few usable backends that it ignores health.",
                   steps=((None, GREEN), (1, RED))),
            number("Algorithm", "none", (f"evenkeel_pool_algorithm{{{P}}} == 1", "{{pool}}: {{algorithm}}"), name=True, steps=((None, PURPLE),),
                   help_text="How each pool chooses. Each switch is a vertical line in the charts."),
            number("Alerts", "none", 'count(ALERTS{alertstate="firing"}) or vector(0)', steps=((None, GREEN), (1, RED)), help_text="Alerts firing now."),
        ]),
        ("Traffic", [
            lines("Requests by code", "reqps", (f"sum by (code) (rate(evenkeel_requests_total{{{P}}}[{RATE}]))", "{{code}}"), stack="normal",
                  help_text="Answers to clients by class of the status code."),
            lines("Latency", "s", *((percentile(q, "evenkeel_request_duration_seconds", [], P), name)
                                    for q, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"))),
                  help_text="From a request's head to the end of its response."),
            lines("Errors and refusals", "reqps", (f'sum(rate(evenkeel_requests_total{{{P}, code="5xx"}}[{RATE}]))', "5xx"),
                  (f"sum by (status) (rate(evenkeel_responses_total{{{P}}}[{RATE}])) > 0", "{{status}}"),
                  (f"sum by (reason) (rate(evenkeel_refusals_total[{RATE}])) > 0", "refused: {{reason}}"),
                  (f"sum by (reason) (rate(evenkeel_http2_connection_errors_total[{RATE}])) > 0", "HTTP/2 connections: {{reason}}"),
                  help_text="Requests that failed, by status (499: the client left), those that Evenkeel answered itself, by reason, and HTTP/2 connections that it ended for an error of their client; enhance-your-calm: a flood."),
        ]),
        ("Backends", [
            lines("Share of each backend", "percentunit",
                  (f"sum by (backend) (rate(evenkeel_backend_attempts_total{{{P}}}[{RATE}])) / ignoring(backend) group_left sum(rate(evenkeel_backend_attempts_total{{{P}}}[{RATE}]))", "{{backend}}"),
                  stack="normal", most=1, width=12, help_text="Of all requests, the part that each backend was chosen for: what the algorithm does."),
            states("Health", one_of("evenkeel_backend_status", "status", STATUS, P + ", ") .join(["sum by (backend) (", ")"]), "{{backend}}", STATUS_SHOWN,
                   help_text="What each backend was: probes, ejections and the operator in one word."),
        ], [
            lines("Response time, 99th percentile", "s", (percentile(0.99, "evenkeel_backend_response_seconds", ["backend"], P), "{{backend}}"),
                  help_text="From choosing a backend to the head of its response."),
            lines("In flight", "none", (f"sum by (backend) (evenkeel_backend_in_flight{{{P}}})", "{{backend}}"), stack="normal",
                  help_text="Exchanges on each backend."),
            lines("Failures and retries", "reqps", (f"sum by (backend, kind) (rate(evenkeel_backend_failures_total{{{P}}}[{RATE}])) > 0", "{{backend}} {{kind}}"),
                  (f"sum(rate(evenkeel_retries_total{{{P}}}[{RATE}]))", "retries"), help_text="Attempts that failed, by kind, and requests given to another backend."),
        ], [
            lines("Ejections", "short", (f"sum by (backend) (increase(evenkeel_backend_ejections_total{{{P}}}[1m]))", "{{backend}}"), bars=True,
                  help_text="Backends ejected because real traffic failed on them, in the last minute."),
            lines("Probes that fail", "ops", (f'sum by (backend) (rate(evenkeel_backend_probes_total{{{P}, result="failure"}}[{RATE}]))', "{{backend}}"),
                  help_text="Active health checks without the expected answer."),
            lines("Weights", "none", (f"max by (backend) (evenkeel_backend_weight{{{P}}})", "{{backend}}"), help_text="Weights in force; the algorithms weighted, least-connections and ip-hash heed them."),
        ]),
        ("TLS", [
            lines("Handshakes", "ops", (f"sum by (kind) (rate(evenkeel_tls_handshakes_total[{RATE}]))", "{{kind}}"),
                  (f"sum by (reason) (rate(evenkeel_tls_handshake_failures_total[{RATE}])) > 0", "failed: {{reason}}"), width=12,
                  help_text="Handshakes with clients, full or resumed, and those that failed, by reason."),
            lines("Time until certificates expire", "s", ("min by (certificate, name) (evenkeel_certificate_not_after_timestamp_seconds) - time()", "{{name}} ({{certificate}})"), width=12,
                  help_text="How long each certificate is still valid. Who renews them does so when 30 days, or a third of their time, are left."),
        ]),
        ("The balancer itself", [
            lines("Memory", "bytes", ('process_resident_memory_bytes{job="evenkeel"}', "resident"), width=6, help_text="Resident memory."),
            lines("Processor", "percentunit", (f'rate(process_cpu_seconds_total{{job="evenkeel"}}[{RATE}])', "of one core"), width=6, help_text="1 is one core fully in use."),
            lines("Open files", "none", ('process_open_fds{job="evenkeel"}', "open"), ('process_max_fds{job="evenkeel"}', "limit"), width=6,
                  help_text="Each connection takes one, towards clients and towards backends."),
            lines("Changes", "short", ("evenkeel_snapshot_version", "snapshot"), ("sum by (result) (evenkeel_reloads_total)", "reloads: {{result}}"),
                  ("evenkeel_access_log_lost_total", "access log lines lost"), ("evenkeel_log_lost_total", "log lines lost"), width=6, help_text="Snapshots since the start, reloads by result, log lines that could not be written in time."),
        ], [
            lines("Clients", "none", ("evenkeel_client_connections", "connected"), ("evenkeel_client_connections_limit", "limit"), width=12,
                  help_text="Connections of clients. At the limit, idle ones are closed to make room, and others wait to be accepted."),
            lines("Connections that fail", "cps", (f"sum by (reason) (rate(evenkeel_accept_failures_total[{RATE}]))", "not accepted: {{reason}}"),
                  (f"sum by (kind) (rate(evenkeel_connections_not_opened_total{{{P}}}[{RATE}]))", "to backends: {{kind}}"), width=12,
                  help_text="Connections of clients that could not be accepted, and connections to backends that the balancer itself could not open, by what it lacked."),
        ]),
    ],
    [SWITCHES, FIRING], [variable("pool", "Pool", "evenkeel_pool_algorithm")],
)

ROLES = {1: "master", 2: "slave"}
REDIS = dashboard(
    "evenkeel-redis", "Evenkeel: Redis Cluster", "The six nodes that keep the sessions.",
    [
        ("Now", [
            number("Cluster", "none", "min(redis_cluster_state)", width=4, steps=((None, RED), (1, GREEN)), help_text="1: every node that answers sees a sound cluster."),
            number("Slots served", "none", "min(redis_cluster_slots_ok)", width=4, steps=((None, RED), (16384, GREEN)), help_text="Of 16384."),
            number("Nodes that answer", "none", "sum(redis_up)", width=4, steps=((None, RED), (4, YELLOW), (6, GREEN)), help_text="Of six."),
            number("Masters", "none", 'count(redis_instance_info{role="master"})', width=4, steps=((None, RED), (3, GREEN)), help_text="Three when nothing is wrong; four for a moment around a failover."),
            number("Replicas linked", "none", "sum(redis_master_link_up)", width=4, steps=((None, RED), (1, YELLOW), (3, GREEN)), help_text="Replicas that follow their master."),
            number("Keys", "short", 'sum(redis_db_keys{db="db0"} and on (instance) redis_instance_info{role="master"})', width=4, steps=((None, BLUE),), help_text="Sessions kept, on the masters."),
        ]),
        ("Roles and slots", [
            states("Role of each node", "sum by (instance) (" + one_of("redis_instance_info", "role", ROLES) + ")", "{{instance}}",
                   {1: ("master", BLUE), 2: ("replica", GREEN)}, help_text="A failover shows as two bands that exchange their colours; a gap is a node that does not answer."),
            lines("Slots, as each node sees them", "none", ("redis_cluster_slots_ok", "{{instance}} ok"), ("redis_cluster_slots_pfail + redis_cluster_slots_fail > 0", "{{instance}} failing"),
                  width=6, help_text="Slots whose master is reachable."),
            lines("Nodes known", "none", ("redis_cluster_known_nodes", "{{instance}}"), width=6, help_text="All nodes should agree."),
        ]),
        ("Work", [
            lines("Commands", "ops", (f"sum by (instance) (rate(redis_commands_processed_total[{RATE}]))", "{{instance}}"), stack="normal", help_text="Commands carried out, replication included."),
            lines("Time of a command", "s", (f'sum by (cmd) (rate(redis_commands_duration_seconds_total{{cmd=~"get|set|del|pexpire|evalsha"}}[{RATE}])) / sum by (cmd) (rate(redis_commands_total{{cmd=~"get|set|del|pexpire|evalsha"}}[{RATE}])) > 0', "{{cmd}}"),
                  ("sum(rate(redis_commands_duration_seconds_total[5m])) / sum(rate(redis_commands_total[5m]))", "all"), help_text="Mean time within the server, by command of the sessions."),
            lines("Sessions' operations as the application sees them", "s",
                  (percentile(0.99, "app_store_operation_duration_seconds", ["operation"], 'store="sessions"'), "{{operation}} p99"), help_text="Network, redirections and waiting included."),
        ], [
            lines("Keys", "short", ('sum by (instance) (redis_db_keys{db="db0"})', "{{instance}}"), help_text="On masters and replicas alike."),
            lines("Keys that ended", "ops", (f"sum(rate(redis_expired_keys_total[{RATE}]))", "expired"), (f"sum(rate(redis_evicted_keys_total[{RATE}]))", "evicted for lack of memory"),
                  help_text="Evictions mean that sessions are lost before their time: give the nodes more memory."),
            lines("Errors of the sessions' store", "ops", (f'sum by (operation) (rate(app_store_errors_total{{store="sessions"}}[{RATE}]))', "{{operation}}"), help_text="Operations that the application gave up."),
        ]),
        ("Replication and memory", [
            lines("Behind the master", "bytes", ("redis_master_repl_offset - on (instance) group_right () redis_connected_slave_offset_bytes", "{{slave_ip}} of {{instance}}"),
                  width=6, help_text="Part of the replication stream that a replica has not confirmed yet: what a failover at this moment may lose."),
            lines("Replicas of each master", "none", ('redis_connected_slaves and on (instance) redis_instance_info{role="master"}', "{{instance}}"), width=6, help_text="One each when nothing is wrong."),
            lines("Memory", "bytes", ("redis_memory_used_bytes", "{{instance}}"), ("max(redis_memory_max_bytes)", "limit"), width=6, help_text="Used by data and buffers."),
            lines("Clients", "none", ("redis_connected_clients", "{{instance}}"), width=6, help_text="Connections, the exporter's included."),
        ]),
    ],
    [marks("Failover", 'max by (instance) (redis_instance_info{role="master"}) and on (instance) redis_instance_info{role="slave"} offset 15s', "{{instance}} is master", ORANGE), FIRING],
)

CRATEDB = dashboard(
    "evenkeel-cratedb", "Evenkeel: CrateDB", "The cluster that keeps accounts, logins and posts: its own sys tables, and what the application sees of it.",
    [
        ("Now", [
            number("Nodes", "none", "sum(cratedb_node_answers)", width=4, steps=((None, RED), (2, YELLOW), (3, GREEN)), help_text="That answer, of three."),
            number("Worst table", "none", "max(cratedb_table_severity)", width=4, steps=((None, GREEN), (2, YELLOW), (3, RED)), help_text="1 green, 2 yellow: a copy is missing, 3 red: data is missing."),
            number("Masters", "none", "max(cratedb_has_master)", width=4, steps=((None, RED), (1, GREEN)), help_text="Without one every write fails."),
            number("Size", "bytes", "sum(cratedb_table_size_bytes)", width=4, steps=((None, BLUE),), help_text="On disk, copies included."),
            number("Statements", "ops", f"sum(rate(cratedb_queries_total[{RATE}]))", width=4, steps=((None, BLUE),), help_text="Carried out a second, on all nodes."),
            number("Failed statements", "ops", f"sum(rate(cratedb_query_failures_total[{RATE}]))", width=4, steps=((None, GREEN), (0.01, RED)), help_text="A second, on all nodes."),
        ]),
        ("As the application sees it", [
            lines("Operations", "ops", (f'sum by (operation) (rate(app_store_operation_duration_seconds_count{{store="data"}}[{RATE}]))', "{{operation}}"), stack="normal", help_text="What the instances ask of the database."),
            lines("Time of an operation, 99th percentile", "s", (percentile(0.99, "app_store_operation_duration_seconds", ["operation"], 'store="data"'), "{{operation}}"), help_text="Network and waiting for a connection included."),
            lines("Errors", "ops", (f'sum by (operation) (rate(app_store_errors_total{{store="data"}}[{RATE}]))', "{{operation}}"), help_text="Operations that the application gave up."),
        ]),
        ("Tables and shards", [
            states("Health of each table", "max by (table) (cratedb_table_severity)", "{{table}}", {1: ("green", GREEN), 2: ("yellow", YELLOW), 3: ("red", RED)},
                   help_text="Yellow: a copy is missing, nothing is lost. Red: a shard has no copy at all."),
            lines("Shards by state", "none", ("sum by (role, state) (cratedb_shards)", "{{role}} {{state}}"), width=6, help_text="STARTED is well; others are on their way or have no node."),
            lines("Shards in want", "none", ("sum by (table) (cratedb_underreplicated_shards)", "{{table}}: too few copies"), ("sum by (table) (cratedb_missing_shards)", "{{table}}: no copy"), width=6, help_text="Zero when nothing is wrong."),
        ], [
            lines("Rows", "short", ("sum by (table) (cratedb_table_rows)", "{{table}}"), help_text="Copies left out."),
            lines("Size", "bytes", ("sum by (table) (cratedb_table_size_bytes)", "{{table}}"), stack="normal", help_text="Copies included."),
            lines("Mean time of a statement", "s", (f"sum by (kind) (rate(cratedb_query_seconds_total[{RATE}])) / (sum by (kind) (rate(cratedb_queries_total[{RATE}])) > 0)", "{{kind}}"), help_text="Within the database, by kind."),
        ]),
        ("Nodes", [
            lines("Heap in use", "percentunit", ("cratedb_heap_used_bytes / cratedb_heap_max_bytes", "{{node}}"), most=1, width=6, help_text="Above 0.8 for long, give it more."),
            lines("Load", "short", ("cratedb_load1", "{{node}}"), width=6, help_text="Average over a minute."),
            lines("Client connections", "none", ("cratedb_connections_open", "{{node}}"), width=6, help_text="PostgreSQL wire protocol: the pools of the instances."),
            lines("Disk in use", "percentunit", ("cratedb_disk_used_bytes / cratedb_disk_size_bytes", "{{node}}"), most=1, width=6, help_text="CrateDB stops placing shards on a node at 0.85."),
        ]),
    ],
    [FIRING],
)

I = 'instance=~"$instance"'
APP = dashboard(
    "evenkeel-app", "Evenkeel: application", "The instances behind the balancer: pages, sessions, logins, and what they wait for.",
    [
        ("Now", [
            number("Requests", "reqps", f"sum(rate(app_requests_total{{{I}}}[{RATE}]))", width=4, steps=((None, BLUE),), help_text="Answered a second."),
            number("Failing", "percentunit", f'(sum(rate(app_requests_total{{{I}, code="5xx"}}[{RATE}])) or vector(0)) / sum(rate(app_requests_total{{{I}}}[{RATE}]))', width=4,
                   steps=((None, GREEN), (0.001, YELLOW), (0.01, RED)), decimals=2, help_text="Share answered 5xx."),
            number("99th percentile", "s", percentile(0.99, "app_request_duration_seconds", [], I), width=4, steps=((None, GREEN), (0.5, YELLOW), (1, RED)), help_text="Time to the answer's headers."),
            number("Instances", "none", 'sum(up{job="app"})', width=4, steps=((None, RED), (2, YELLOW), (3, GREEN)), help_text="That answer Prometheus."),
            number("Logins", "short", "sum(increase(app_logins_total{result=\"succeeded\"}[15m])) or vector(0)", width=4, steps=((None, BLUE),), decimals=0, help_text="In the last 15 minutes."),
            number("Store errors", "ops", f"sum(rate(app_store_errors_total{{{I}}}[{RATE}]))", width=4, steps=((None, GREEN), (0.01, RED)), help_text="A second, all stores."),
        ]),
        ("Requests", [
            lines("By route", "reqps", (f"sum by (route) (rate(app_requests_total{{{I}}}[{RATE}]))", "{{route}}"), stack="normal", help_text="Routes, not addresses."),
            lines("By instance", "reqps", (f"sum by (instance) (rate(app_requests_total{{{I}}}[{RATE}]))", "{{instance}}"), stack="normal", help_text="Probes and scrapes included."),
            lines("By code", "reqps", (f"sum by (code) (rate(app_requests_total{{{I}}}[{RATE}]))", "{{code}}"), stack="normal", help_text="Class of the status code."),
        ], [
            lines("Time by route, 99th percentile", "s", (percentile(0.99, "app_request_duration_seconds", ["route"], I), "{{route}}"), help_text="Logins and sign-ups are slow on purpose: they hash a password."),
            lines("In flight", "none", (f"app_requests_in_flight{{{I}}}", "{{instance}}"), help_text="Requests being answered."),
            lines("Connections", "none", (f"app_connections{{{I}}}", "{{instance}}"), help_text="The balancer keeps them open."),
        ]),
        ("Members", [
            lines("Logins by result", "ops", (f"sum by (result) (rate(app_logins_total{{{I}}}[{RATE}]))", "{{result}}"), help_text="Many wrong passwords are somebody guessing."),
            lines("Sessions begun", "ops", (f"sum by (instance) (rate(app_sessions_created_total{{{I}}}[{RATE}]))", "{{instance}}"), stack="normal", help_text="Renewed ids included."),
            lines("Pictures", "ops", (f'sum by (result) (rate(app_pictures_total{{{I}}}[{RATE}])) or on () label_replace(vector(0), "result", "none yet", "", "")', "{{result}}"), help_text="Received, by what became of them."),
        ]),
        ("Stores", [
            lines("Operations", "ops", (f"sum by (store, operation) (rate(app_store_operation_duration_seconds_count{{{I}}}[{RATE}]))", "{{store}} {{operation}}"), stack="normal", help_text="What the instances ask of sessions, data and media."),
            lines("Time of an operation, 99th percentile", "s", (percentile(0.99, "app_store_operation_duration_seconds", ["store", "operation"], I), "{{store}} {{operation}}"), help_text="As the application waits for it."),
            lines("Errors", "ops", (f'sum by (store, operation) (rate(app_store_errors_total{{{I}}}[{RATE}]))', "{{store}} {{operation}}"), help_text="Operations given up."),
        ]),
    ],
    [SWITCHES, FIRING], [variable("instance", "Instance", "app_connections")],
)

ALL = {"overview": OVERVIEW, "redis": REDIS, "cratedb": CRATEDB, "app": APP}


def text(one):
    return json.dumps(one, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    stale = [name for name, one in ALL.items() if not (HERE / f"{name}.json").exists() or (HERE / f"{name}.json").read_text() != text(one)]
    if "--check" in sys.argv:
        sys.exit(f"grafana: written otherwise than dashboards.py says: {', '.join(stale)}; run it" if stale else 0)
    HERE.mkdir(exist_ok=True)
    for name in stale:
        (HERE / f"{name}.json").write_text(text(ALL[name]))
        print(f"wrote {name}.json")
