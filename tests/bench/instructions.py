#!/usr/bin/env python3
"""Counts the instructions that Evenkeel spends on a request outside the kernel, under callgrind: unlike times, counts
hardly differ from run to run. One thread answers N requests of one client, then 2 N in another process; the difference
is what N cost. Writes the counts to the baseline and to docs/performance.md; `--check` compares instead with the
committed counts and fails where one grew by more than 1 %."""

import argparse
import json
import pathlib
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import report
from balancers import (BOTH_CORES, CORE_OF_LOAD, EXPRESSIONS, HERE, ONE_ROUTE, ROOT, WORK, Balancer, Process, Setup,
                       free_ports)
from loads import FIELDS

BASELINE = HERE / "instructions.json"
TOLERANCE = 0.01
PACKAGES = ["valgrind:valgrind", "openssl:openssl", "cc:build-essential", "cmake:cmake", "taskset:util-linux"]
START_SECONDS = 60

COMMON = "Host: bench.test\r\n" + "\r\n".join(FIELDS) + "\r\n"


class Case:
    """A request, the status of its response, and what the configuration says of it."""

    def __init__(self, target="/small", sites=ONE_ROUTE, status=200, fields="", method="GET", body=""):
        self.sites, self.status = sites, status
        self.request = f"{method} {target} HTTP/1.1\r\n{COMMON}{fields}\r\n{body}".encode()


def site(says, *routes):
    return f'[[site]]\nhosts = [""]\n{says}\n' + "".join(f"[[site.route]]\n{route}\n" for route in routes)


POOL = 'pool = "app"'
CASES = {
    "small": Case(),
    "10 KB": Case("/10k"),
    "POST 10 KB": Case("/post", method="POST", fields="Content-Length: 10240\r\n", body="x" * 10240),
}
# What a site says of a small request that otherwise goes to the pool, one thing each.
FEATURES = {
    "request fields": Case(sites=site(
        POOL + '\nrequest_headers = { set = { X-Tenant = "shop", X-Host = "$host" }, remove = ["X-Debug"] }')),
    "response fields": Case(sites=site(
        POOL + '\nresponse_headers = { set = { X-Frame-Options = "DENY", X-Content-Type-Options = "nosniff" },'
        ' remove = ["X-Powered-By"] }')),
    "preset": Case(sites=site(POOL + '\npreset = "secure-headers"')),
    "condition that fails": Case(sites=site(
        "", f'path = "/"\nwhen = {{ headers = {{ X-Beta = "on" }} }}\n{POOL}', f'path = "/"\n{POOL}')),
    "expression that fits": Case(sites=site("", f"regex = '^/(small|large)$'\n{POOL}")),
    "ten expressions that do not": Case(sites=site(
        "", f'path = "/"\n{POOL}', *(f"regex = '{regex}'\n{POOL}" for regex in EXPRESSIONS))),
    "rewritten prefix": Case("/api/small", sites=site(
        POOL, f'path = "/api"\nrewrite = {{ prefix = "/" }}\n{POOL}')),
    "rewriting expression": Case("/api/small", sites=site(
        POOL, f"path = \"/api\"\nrewrite = {{ regex = '^/api/(.*)$', to = \"/$1\" }}\n{POOL}")),
    "table": Case(
        fields="Cookie: tier=gold\r\n",
        sites='[values]\ntier = { from = "$cookie_tier", cases = { gold = "fast", silver = "slow" } }\n'
        + site(POOL + '\nrequest_headers = { set = { X-Tier = "$tier" } }')),
    "CORS": Case(fields="Origin: https://shop.example\r\n", sites=site(
        POOL + '\ncors = { origins = ["https://shop.example"] }')),
    "log with its own format": Case(sites=site(
        POOL + '\naccess_log = { file = "own.log", format = "$remote_addr $request_method $request_uri $status" }')),
    "jump": Case(sites=site("", 'path = "/"\njump = "there"', f'name = "there"\n{POOL}')),
    "fixed answer": Case(sites=site("", 'path = "/"\nrespond = { body = "fine" }')),
    "redirect": Case(status=302, sites=site(
        "", 'path = "/"\nredirect = "https://shop.example$request_uri"')),
    "error page": Case(status=404, sites=site(
        'error_pages = { "404" = { text = "Not here." } }', f'path = "/other"\n{POOL}')),
}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a count grew by more than 1 %%")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--profile", default="release", help="cargo's; with `profiling` the functions get their names")
    parser.add_argument("--only", default="", help="counts, with commas, which are shown and not written")
    parser.add_argument("--binary", type=pathlib.Path, help="an evenkeel that is built already")
    return parser.parse_args()


def built(args):
    if args.binary:
        return args.binary.resolve()
    subprocess.run(["cargo", "build", "--profile", args.profile, "--package", "evenkeel"], cwd=ROOT, check=True)
    metadata = subprocess.check_output(["cargo", "metadata", "--format-version=1", "--no-deps"], cwd=ROOT)
    return pathlib.Path(json.loads(metadata)["target_directory"]) / args.profile / "evenkeel"


def exchange(client, case):
    """One request and the whole of its response."""
    client.sendall(case.request)
    answer = bytearray()
    while (end := answer.find(b"\r\n\r\n")) < 0:
        part = client.recv(65536)
        if not part:
            raise RuntimeError("the balancer closed the connection")
        answer += part
    if not answer.startswith(b"HTTP/1.1 %d " % case.status):
        raise RuntimeError(bytes(answer[:80]))
    left = end + 4 + int(re.search(rb"content-length: (\d+)", answer, re.I).group(1)) - len(answer)
    while left > 0:
        left -= len(client.recv(65536))


def instructions(setup, case, count, running):
    """Of a whole process that answered so many requests."""
    label = f"instructions-{count}"
    setup.sites = case.sites
    prefix = ["valgrind", "-q", "--tool=callgrind", "--callgrind-out-file=callgrind.out"]
    balancer = Balancer("evenkeel", setup, label, cores=BOTH_CORES, prefix=prefix)
    running.append(balancer)
    balancer.wait_until_ready(balancer.port, START_SECONDS, case.status)
    with socket.create_connection(("127.0.0.1", balancer.port), 30) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            exchange(client, case)
    balancer.child.send_signal(signal.SIGTERM)
    balancer.child.wait(60)
    counted = (balancer.directory / "callgrind.out").read_text()
    return int(re.search(r"^(?:totals|summary): (\d+)", counted, re.M).group(1))


def per_request(setup, case, count, running):
    once, twice = (instructions(setup, case, n, running) for n in (count, 2 * count))
    return round((twice - once) / count)


def grown(baseline, counts):
    """What takes more than it may, in words."""
    return [f"{name}: {count:,} instructions, {count / baseline[name] - 1:+.1%} from {baseline[name]:,}"
            for name, count in counts.items() if count > baseline[name] * (1 + TOLERANCE)]


def markdown(counts):
    rows = [[name, f"{counts[name]:,}", ""] for name in CASES]
    rows += [[name, f"{counts[name]:,}", f"{counts[name] - counts['small']:+,}"] for name in FEATURES]
    return report.table(["", "instructions per request", "beside \"small\""], rows)


def main():
    args = arguments()
    only = list(filter(None, args.only.split(",")))
    cases = {name: case for name, case in (CASES | FEATURES).items() if not only or name in only}
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Valgrind keeps some descriptors for itself, above the limit that it shows.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    subprocess.run(["sh", ".ci/tools", *PACKAGES], cwd=ROOT, check=True)
    WORK.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cc", "-O2", "-o", WORK / "origin", HERE / "origin.c"], check=True)
    origins = free_ports(1)
    directory = WORK / "run" / "instructions-origin"
    directory.mkdir(parents=True, exist_ok=True)
    binary = WORK / "evenkeel-instructions"
    binary.unlink(missing_ok=True)
    shutil.copy2(built(args), binary)
    setup = Setup(binary, None, origins, 0, probes=False)
    running = [Process("origin", [WORK / "origin", *origins], CORE_OF_LOAD, directory)]
    counts = {}
    try:
        running[0].wait_until_ready(origins[0])
        for name, case in cases.items():
            counts[name] = per_request(setup, case, args.requests, running)
            print(f"{name}: {counts[name]:,}", flush=True)
    finally:
        for process in reversed(running):
            process.stop()
    if only and not args.check:
        return
    if not args.check:
        BASELINE.write_text(json.dumps(counts, indent=4) + "\n")
        report.replace(ROOT / "docs" / "performance.md", "instructions", markdown(counts))
        return
    problems = grown(json.loads(BASELINE.read_text()), counts)
    if problems:
        sys.exit("more than 1 % beyond the committed count:\n" + "\n".join(problems)
                 + "\nIf it is worth that, run sh tests/bench/instructions and commit what it writes.")


if __name__ == "__main__":
    main()
