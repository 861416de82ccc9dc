"""Tables of what was measured, as they stand in docs/performance.md."""

import os
import pathlib
import platform
import re
import statistics
import subprocess

from balancers import ROOT, command
from loads import EMBEDDED, IDLE_HTTP2_TARGET, IDLES, SCENARIOS

NAMES = {"evenkeel": "Evenkeel", "nginx": "nginx", "haproxy": "HAProxy", "envoy": "Envoy",
         "pingora-proxy": "Pingora proxy", "pingora-engine": "Pingora, our engine"}
SCALE_TARGET = 1.8


def replace(path, mark, text):
    """Puts a text between the marks in a file."""
    old = path.read_text()
    pattern = re.compile(rf"(<!-- {mark}: begin -->\n).*(<!-- {mark}: end -->)", re.S)
    new, count = pattern.subn(lambda found: found.group(1) + text.rstrip() + "\n" + found.group(2), old)
    if count != 1:
        raise RuntimeError(f"{path.name} has no place for {mark}")
    path.write_text(new)


def table(head, rows):
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines)


def spread(values, form):
    """The median, with the least and the most."""
    if not values:
        return "–"
    if len(values) == 1:
        return form(values[0])
    return f"{form(statistics.median(values))} ({form(min(values))}–{form(max(values))})"


def microseconds(seconds):
    value = seconds * 1e6
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def first_line(words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[0]


def number_in(text):
    found = re.search(r"\d+\.\d+(\.\d+)?", text)
    return found.group(0) if found else "?"


class Report:
    def __init__(self, run, rounds):
        self.run, self.rounds = run, rounds
        self.kinds = run.kinds
        self.scenarios = [s for s in SCENARIOS if s.key in run.results]

    def values(self, scenario, kind, what):
        return [measured[what] for measured in self.run.results.get(scenario, {}).get(kind, [])]

    def ratios(self, scenario, peer, what="cpu"):
        """Evenkeel's share of a peer, round by round."""
        of = {kind: {m["round"]: m[what] for m in self.run.results.get(scenario, {}).get(kind, [])}
              for kind in ("evenkeel", peer)}
        rounds = sorted(of["evenkeel"].keys() & of[peer].keys())
        return [of["evenkeel"][r] / of[peer][r] for r in rounds if of[peer][r] > 0]

    def markdown(self):
        parts = [self.setting()]
        if self.scenarios:
            parts += ["CPU per request of the balancer, in microseconds (of one core): median (least–most).",
                      self.measures("cpu", microseconds)]
            parts += ["Evenkeel's CPU per request as a share of the others', by round: median (least–most). "
                      "Target: for nginx and for HAProxy.", self.shares()]
            parts += ["Requests per second, in thousands.",
                      self.measures("rate", lambda rate: f"{rate / 1000:.1f}")]
            parts += ["How busy the balancer kept its core: below 95 % the load generator or the backends were the "
                      "limit, and only CPU per request says anything.",
                      self.measures("busy", lambda busy: f"{busy * 100:.0f} %")]
        scale = self.scale()
        if scale:
            parts.append(scale)
        if self.run.idle:
            parts += ["Memory (RSS) that one of so many idle clients takes, which has made one request before; bytes, "
                      "measured once.",
                      table(["", "clients", *map(NAMES.get, self.kinds), "target"], list(map(self.idle, IDLES)))]
        missing = "\n".join(f"- {line}" for line in self.run.missing) or "- nothing"
        parts.append("What did not run:\n\n" + missing)
        return "\n\n".join(parts)

    def ways(self):
        """Evenkeel by itself and in a Pingora server."""
        peers = [kind for kind in self.kinds if kind != "evenkeel"]
        shares = [[s.title, *[spread([1 / share for share in self.ratios(s.key, peer) if share > 0], lambda times: f"{times:.2f}")
                              for peer in peers]] for s in self.scenarios]
        parts = [self.setting(),
                 "CPU per request, in microseconds (of one core): median (least–most).", self.measures("cpu", microseconds),
                 "The same in multiples of Evenkeel's, by round.", table(["", *map(NAMES.get, peers)], shares)]
        if self.run.idle:
            rows = [self.idle(idle)[:-1] for idle in IDLES]
            parts += ["Memory (RSS) of one of so many idle clients, in bytes, measured once.",
                      table(["", "clients", *map(NAMES.get, self.kinds)], rows)]
        if self.run.missing:
            parts.append("What did not run:\n\n" + "\n".join(f"- {line}" for line in self.run.missing))
        return "\n\n".join(parts)

    def idle(self, idle):
        """The row of these idle clients."""
        found = self.run.idle.get(idle.key, {})
        target, ours = idle.target, found.get("evenkeel")
        if "evenkeel" in self.run.idle.get(idle.beside, {}):
            target = self.run.idle[idle.beside]["evenkeel"] + IDLE_HTTP2_TARGET
        verdict = "" if target is None or ours is None else f"{target:,.0f}: {'met' if ours <= target else 'missed'}"
        cells = [f"{found[kind]:,.0f}" if kind in found else "–" for kind in self.kinds]
        return [idle.title, f"{idle.clients:,}", *cells, verdict]

    def setting(self):
        cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
        debian = re.search(r'PRETTY_NAME="(.*)"', pathlib.Path("/etc/os-release").read_text())
        versions = [f"Evenkeel {self.run.revision}"]
        if "nginx" in self.kinds:
            versions.append("nginx " + number_in(first_line([command("nginx"), "-v"])))
        if "haproxy" in self.kinds:
            versions.append("HAProxy " + number_in(first_line([command("haproxy"), "-v"])))
        if "envoy" in self.kinds:
            versions.append("Envoy " + number_in(first_line([self.run.setup.envoy, "--version"]).partition("version:")[2]))
        if any(kind in self.kinds for kind in EMBEDDED):
            lock = (ROOT / "Cargo.lock").read_text()
            versions.append("Pingora " + re.search(r'name = "pingora-core"\nversion = "(.*)"', lock).group(1))
        versions.append("wrk " + number_in(first_line(["wrk", "-v"])))
        versions.append("h2load " + number_in(first_line(["h2load", "--version"])))
        versions.append("OpenSSL " + number_in(first_line(["openssl", "version"])))
        versions.append(first_line(["rustc", "--version"]).rsplit(" (", 1)[0])
        return (f"{', '.join(versions)}. {cpu.group(1) if cpu else platform.machine()}, {os.cpu_count()} cores, "
                f"Linux {platform.release()}, {debian.group(1) if debian else 'unknown system'}. {self.rounds} rounds of "
                f"{self.run.args.seconds} s for each measurement, {self.run.took:.0f} s in all; load average before: "
                f"{self.run.load[0]:.1f}.")

    def measures(self, what, form):
        rows = [[s.title, *[spread(self.values(s.key, kind, what), form) for kind in self.kinds]] for s in self.scenarios]
        return table(["", *map(NAMES.get, self.kinds)], rows)

    def shares(self):
        peers = [kind for kind in self.kinds if kind != "evenkeel"]
        rows = []
        for scenario in self.scenarios:
            cells = [spread(self.ratios(scenario.key, peer), lambda share: f"{share:.2f}") for peer in peers]
            rows.append([scenario.title, *cells, *self.verdict(scenario)])
        return table(["", *[f"of {NAMES[peer]}" for peer in peers], "target", ""], rows)

    def verdict(self, scenario):
        if not scenario.target:
            return ["", ""]
        limits = dict(zip(("nginx", "haproxy"), scenario.target))
        measured = {peer: self.ratios(scenario.key, peer) for peer in limits}
        missed = [NAMES[peer] for peer, limit in limits.items()
                  if measured[peer] and statistics.median(measured[peer]) > limit]
        return [f"≤ {scenario.target[0]}", "missed: " + " and ".join(missed) if missed else "met"]

    def scale(self):
        """Two threads do twice the work of one if a request costs them the same."""
        cells = []
        for kind in self.kinds:
            one, two = ({m["round"]: m["cpu"] for m in self.run.results.get(key, {}).get(kind, [])} for key in ("one", "two"))
            values = [2 * one[r] / two[r] for r in sorted(one.keys() & two.keys()) if two[r] > 0]
            cells.append(spread(values, lambda scale: f"{scale:.2f}"))
        if all(cell == "–" for cell in cells):
            return ""
        return ("How two threads scale: twice the CPU per request of one thread, over that of two, both on both cores "
                "together with load and backends (two cores cannot show it as requests per second). "
                f"Target: {SCALE_TARGET}.\n\n" + table([NAMES[kind] for kind in self.kinds], [cells]))
