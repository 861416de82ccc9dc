#!/usr/bin/env python3
"""STAND-IN: answers Grafana's health endpoint, if what Grafana would read is there and can be read."""

import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def problem():
    dashboards = sorted(Path("/etc/grafana/dashboards").glob("*.json"))
    for path in dashboards:
        json.loads(path.read_text())
    if len(dashboards) < 4:
        return f"{len(dashboards)} dashboards"
    if not list(Path("/etc/grafana/provisioning").glob("*/*.yml")):
        return "no provisioning"
    if not Path(os.environ["GF_SECURITY_ADMIN_PASSWORD__FILE"]).read_text().strip():
        return "no password"
    return None


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            why = problem()
        except (OSError, ValueError, KeyError) as error:
            why = str(error)
        self.send_response(503 if why else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"standin": True, "problem": why}).encode())

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ThreadingHTTPServer(("0.0.0.0", 3000), Handler).serve_forever()
