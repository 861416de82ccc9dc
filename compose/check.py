#!/usr/bin/env python3
"""Checks the compose files without an engine: that the current Compose specification accepts them, and each version of
compose that is installed, Compose 2 or later and docker-compose 1.29; and that each keeps what we promise of it.

    check.py

Needs PyYAML and `compose-spec` (requirements.txt).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

try:
    from compose_spec import PyCompose, PyOptions
except ImportError:
    PyCompose = None

HERE = Path(__file__).resolve().parent
VARIANTS = {
    "large": ["docker-compose.yml"],
    "small": ["compose.small.yml"],
    "hardened": ["docker-compose.yml", "compose.hardened.yml"],
    "inspect": ["docker-compose.yml", "compose.inspect.yml"],
}
PUBLISHED = {"evenkeel", "prometheus", "grafana", "inspect"}
# The image of CrateDB starts as root, changes to its own user and writes its logs beside its programs.
WRITES_ITS_ROOT = {"cratedb-1", "cratedb-2", "cratedb-3"}
MEMORY = {"m": 1, "g": 1024}
# What official images declare as volumes. Where nothing is mounted there, the engine makes a volume without a name for each
# container, and `down` leaves it behind.
IMAGE_VOLUMES = {"redis": "/data", "crate": "/data", "prom/prometheus": "/prometheus"}
# CrateDB's own.
DETECTION = {"timeout": "10s", "interval": "1s", "retry_count": "3"}
# The default of `app serve --database-timeout`.
PATIENCE_SECONDS = 8
LAPTOP_MB = 6 * 1024
# The application's own default, in seconds.
APP_SHUTDOWN_DEADLINE = 10


def interpolated(text):
    """As compose does it with nothing set."""
    return re.sub(r"\$\{\w+(?::?[-?]([^}]*))?\}", lambda m: m[1] or "", text)


def specification(name, document):
    """What the current specification says against a document."""
    if PyCompose is None:
        return ["compose-spec is missing: pip install -r compose/requirements.txt"]
    try:
        PyCompose.from_yaml(yaml.safe_dump(document)).validate()
    except Exception as error:
        return [f"{name}: {error}"]
    return []


def tools():
    """Each version of compose that is here: its command, and what it calls itself."""
    found = {}
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            run = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if run.returncode == 0:
                found[run.stdout.strip()] = command
    return found


def run(command, files, *args, **settings):
    """Compose with these settings and no others, whatever .env says on this machine."""
    flags = [part for name in files for part in ("-f", str(HERE / name))]
    ours = re.compile(r"EVENKEEL_|COMPOSE_PROFILES|COMPOSE_FILE|COMPOSE_PROJECT_NAME|NETWORK$|VERSION$|\w+_PORT$")
    environment = {name: value for name, value in os.environ.items() if not ours.match(name)}
    with tempfile.NamedTemporaryFile() as empty:
        return subprocess.run([*command, "--env-file", empty.name, *flags, *args], capture_output=True, text=True, cwd=HERE,
                              env={**environment, **settings})


def merged(command, files):
    """One document out of several files, as compose merges them."""
    with tempfile.TemporaryDirectory() as secrets:
        done = run(command, files, "--profile", "grow", "config", EVENKEEL_SECRETS=secrets, EVENKEEL_TLS_SECRETS=secrets)
    if done.returncode:
        raise SystemExit(f"compose: {' '.join(command)}: {' '.join(files)}: {done.stderr}")
    return yaml.safe_load(done.stdout)


def without_secrets(command, variant, files):
    """Whoever has not made the secrets yet is told how, before anything is built."""
    wanted = {"run ./secrets.sh first": {}}
    if variant == "hardened":
        wanted["run ./secrets.sh --tls first"] = {"EVENKEEL_SECRETS": "/"}
    for hint, settings in wanted.items():
        done = run(command, files, "config", **settings)
        if done.returncode == 0 or hint not in done.stderr:
            yield f"{variant}: {' '.join(command)} without secrets does not say: {hint}"


def port_text(port):
    """A published port as ADDRESS:PORT:PORT; Compose 2 writes it out as a mapping."""
    return f"{port.get('host_ip', '')}:{port['published']}:{port['target']}" if isinstance(port, dict) else str(port)


def seconds(text):
    """Of a time such as 1m30s or 500ms; without one, the ten seconds that engines give."""
    units = {"h": 3600, "m": 60, "s": 1, "ms": 0.001}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)(ms|[hms])", text or "10s"))


def mounted(service):
    """Where something is mounted: SOURCE:TARGET or TARGET, with a mode or not, or a mapping."""
    for volume in service.get("volumes", []):
        parts = [] if isinstance(volume, dict) else volume.split(":")
        yield volume["target"] if isinstance(volume, dict) else parts[min(1, len(parts) - 1)]


def own_rules(variant, services):
    for name, service in services.items():
        say = lambda text: f"{variant}: {name} {text}"
        once = name.endswith("-init")
        if once != (service.get("restart") == "no"):
            yield say("restarts though it runs once, or does not though it should")
        if not once and "healthcheck" not in service:
            yield say("has no health check")
        waits_for = service.get("depends_on") or {}
        if once and not all(how["condition"] == "service_started" for how in waits_for.values()):
            yield say(f"lets `up` fail when one node is broken: it waits for {waits_for}")
        if "mem_limit" not in service:
            yield say("has no memory limit")
        if not re.search(r":v?\d+\.\d+\.\d+(-[a-z0-9]+)?$", service.get("image", "")):
            yield say(f"has an image that is not pinned: {service.get('image')}")
        if not service.get("read_only") and name not in WRITES_ITS_ROOT:
            yield say("can write to its root file system")
        if service.get("cap_drop") != ["ALL"] and name not in WRITES_ITS_ROOT:
            yield say("keeps privileges")
        declared = IMAGE_VOLUMES.get(service.get("image", "").split(":")[0])
        if declared and declared not in mounted(service):
            yield say(f"leaves volumes without a name behind: mount something at {declared}, which its image declares a volume")
        if service.get("privileged") or "network_mode" in service:
            yield say("is privileged, or shares the host's network")
        delay = (service.get("environment") or {}).get("APP_SHUTDOWN_DELAY")
        if delay and seconds(service.get("stop_grace_period")) < seconds(delay) + APP_SHUTDOWN_DEADLINE:
            yield say(f"is killed after {service.get('stop_grace_period')}, before APP_SHUTDOWN_DELAY ({delay}) and the "
                      f"{APP_SHUTDOWN_DEADLINE} s to finish what is in flight are over")
        open_files = service.get("ulimits", {}).get("nofile", {})
        if name in WRITES_ITS_ROOT and not open_files.get("soft", 0) == open_files.get("hard", 0) >= 65536:
            yield say("may open fewer than 65536 files, and CrateDB does not start then")
        if name in PUBLISHED and service.get("depends_on"):
            yield say("publishes a port and waits for others: that the port is taken would be said late")
        ports = [port_text(port) for port in service.get("ports", [])]
        if ports and name not in PUBLISHED:
            yield say(f"publishes {ports}")
        if any(not port.startswith("127.0.0.1:") for port in ports):
            yield say(f"publishes beyond loopback: {ports}")
        for key, value in (service.get("environment") or {}).items():
            if re.search(r"PASSWORD|TOKEN|SECRET", key) and not key.endswith("FILE"):
                yield say(f"has a secret in its environment: {key}")
            if isinstance(value, str) and re.search(r"://[^/@:]+:[^/@]+@", value):
                yield say(f"has a password in an address: {key}")


def images(variant, services, keeps_policy):
    """One service builds an image of ours, the others wait for it, and nobody asks a registry for its name."""
    ours = {}
    for name, service in services.items():
        if re.match(r"evenkeel(-app)?:", service.get("image", "")):
            ours.setdefault(service["image"], []).append(name)
    for image, users in ours.items():
        builders = [name for name in users if "build" in services[name]]
        if len(builders) != 1:
            yield f"{variant}: {image} is built by {len(builders)} services, {' and '.join(builders) or 'none'}: let one build it"
        for name in users:
            # docker-compose 1.29 drops the setting when it merges files, and never acts on it.
            if keeps_policy and services[name].get("pull_policy") != "never":
                yield f"{variant}: {name} may ask a registry for {image}: say pull_policy: never"
            if name not in builders and not set(builders) <= set(services[name].get("depends_on", {})):
                yield f"{variant}: {name} uses {image} and does not depend on {' and '.join(builders)}, which builds it"


def small_commands():
    """The small variant's commands name its project on every page, since it would take over the large one's containers."""
    top = HERE.parent
    folders = ("compose", "docs", "grafana", "redis", "sql")
    pages = [*top.glob("*.md"), top / "Makefile",
             *(page for folder in folders for kind in ("md", "yml", "sh") for page in (top / folder).rglob(f"*.{kind}"))]
    for page in pages:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for command in re.findall(r"docker[ -]compose [^`#;|]*", line):
                if ("compose.small.yml" in command) != ("-p evenkeel-small" in command):
                    yield f"{page.relative_to(top)}:{number}: the small variant is `docker compose -p evenkeel-small -f compose.small.yml …`"


def crate_paths():
    """The file over the image's own settings must name the volume again: otherwise data goes beside it."""
    settings = yaml.safe_load((HERE / "hardened/crate.yml").read_text())
    for key, folder in {"path.data": "/data/data", "path.logs": "/data/log", "blobs.path": "/data/blobs"}.items():
        if settings.get(key) != folder:
            yield f"hardened/crate.yml: {key} is {settings.get(key)}, not {folder} in the volume"


def hanging_nodes(variant, services):
    """A CrateDB node that hangs is given up, and a master replaced, before the application gives up waiting."""
    commands = {name: service.get("command") or [] for name, service in services.items() if re.fullmatch(r"cratedb-\d", name)}
    told = {name: dict(word[2:].split("=", 1) for word in command if word.startswith("-C")) for name, command in commands.items()}
    for name, settings in told.items():
        others = {key: value for key, value in settings.items() if key != "node.name"}
        first = {key: value for key, value in next(iter(told.values())).items() if key != "node.name"}
        if others != first:
            yield f"{variant}: {name} has other settings than the first node: {sorted(set(others.items()) ^ set(first.items()))}"
        for check in ("follower_check", "leader_check"):
            of = lambda key: settings.get(f"cluster.fault_detection.{check}.{key}", DETECTION[key])
            tries = int(of("retry_count"))
            took = tries * (seconds(of("timeout")) + seconds(of("interval"))) + seconds(settings.get("cluster.publish.timeout", "30s"))
            if took >= PATIENCE_SECONDS:
                yield f"{variant}: {name} takes {took:g} s to notice by {check} that a node hangs; requests wait for {PATIENCE_SECONDS}"


def memory_mb(services):
    total = 0
    for name, service in services.items():
        if "grow" in service.get("profiles", []):
            continue
        limit = str(service.get("mem_limit", "0m")).lower().rstrip("b")
        total += int(limit[:-1]) * MEMORY[limit[-1]] if limit[-1] in MEMORY else int(limit) // 2**20
    return total


def main():
    failures = [*crate_paths(), *small_commands()]
    versions = tools()
    for variant, files in VARIANTS.items():
        documents = {}
        if len(files) == 1:
            # Merge keys are YAML's, not the specification's: what they stand for is written out first.
            documents[files[0]] = yaml.safe_load(interpolated((HERE / files[0]).read_text()))
        elif not versions:
            print(f"compose: {variant}: NOT CHECKED, since no compose is installed to merge {' and '.join(files)}")
        for version, command in versions.items():
            failures += without_secrets(command, variant, files)
            document = documents[f"{variant}, merged by {version}"] = merged(command, files)
            # Compose writes out names that the published specification does not list for secrets.
            for secret in document["secrets"].values():
                secret.pop("name", None)
        for name, document in documents.items():
            services = document["services"]
            failures += specification(name, document)
            failures += hanging_nodes(name, services)
            failures += [*own_rules(name, services), *images(name, services, keeps_policy="merged by 1." not in name)]
            total = memory_mb(services)
            if total > LAPTOP_MB:
                failures.append(f"{name}: memory limits add up to {total} MB, more than {LAPTOP_MB}")
            print(f"compose: {name}: {len(services)} services, memory limits add up to {total} MB")
    for failure in failures:
        print(f"compose: FAILED {failure}")
    print(f"compose: {len(failures)} failures; checked against {' and '.join(['the current specification', *versions])}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
