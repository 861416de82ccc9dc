#!/bin/sh
# Brings the compose demonstration up and puts it to the test: see test.py for what it proves.
#
#   test.sh [large] [small] [hardened]      variants to test [default: large small]
#
#   EVENKEEL_BIN        folder with the programs `evenkeel` and `app` for quickly made images, such as target/debug;
#                       unset: the images are built by compose/Dockerfile
#   EVENKEEL_PULL=yes   use the official images where a registry can be reached [default: stand-ins from Debian]
#   EVENKEEL_PICTURES   folder to draw the dashboards to, with the large variant; needs matplotlib [default: none]
#   COMPOSE             command of the version to test with: "docker compose" or docker-compose [default: the first
#                       that is there]
#   COMPOSE_REQUIRED    yes: that there is no engine is a failure, not a reason to skip; .ci/run says so
#   EVENKEEL_BRIEF=yes  up, down and up again, no disturbances, no broken nodes: what differs between versions of compose
#   EVENKEEL_KEEP_IMAGES=yes
#                       leave the stand-ins under the official names: a later `docker compose up` would take them
#                       for the real ones [default: they are removed]
#
# Starts an engine of its own where none runs and it may; ends that one afterwards. What stand-ins are
# made from, evenkeel-standin/…, stays, so that they are soon built again.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
engine=
# Images of a name of their own: those of a demonstration on this machine stay as they are.
export VERSION="0.1.0-test$$"

not_run() {
    echo
    echo "############################################################################"
    echo "# COMPOSE TEST NOT RUN: $1"
    echo "############################################################################"
    [ "${COMPOSE_REQUIRED:-no}" != yes ] || exit 1
    exit 0
}

remove_standins() {
    images=$(docker images --filter label=standin --format '{{.Repository}}:{{.Tag}}' 2> /dev/null \
        | grep -v -e '<none>' -e '^evenkeel-standin/') || return 0
    # shellcheck disable=SC2086
    docker rmi $images > /dev/null 2>&1 || echo "compose: stand-ins that are in use stay, among $(echo $images)" >&2
}

clean() {
    docker rmi "evenkeel:$VERSION" "evenkeel-app:$VERSION" > /dev/null 2>&1 || true
    [ "${EVENKEEL_KEEP_IMAGES:-no}" = yes ] || remove_standins
    if [ -n "$engine" ]; then
        kill "$engine" 2> /dev/null || true
        wait "$engine" 2> /dev/null || true
    fi
    rm -rf "$scratch" 2> /dev/null || true
}
trap clean EXIT
trap 'exit 130' INT TERM

command -v docker > /dev/null || not_run "no docker command (on Debian: apt-get install docker.io docker-compose debootstrap iptables)"
if ! docker info > /dev/null 2>&1; then
    [ "$(id -u)" -eq 0 ] && PATH=$PATH:/usr/sbin command -v dockerd > /dev/null || not_run "no Docker engine runs, and none may be started here"
    echo "compose: starting a Docker engine"
    PATH=$PATH:/usr/sbin:/sbin dockerd > "$scratch/dockerd.log" 2>&1 &
    engine=$!
    tries=0
    until docker info > /dev/null 2>&1; do
        tries=$((tries + 1))
        if [ "$tries" -gt 30 ] || ! kill -0 "$engine" 2> /dev/null; then
            tail -3 "$scratch/dockerd.log"
            not_run "the Docker engine does not start here"
        fi
        sleep 1
    done
fi

# An engine may run and yet be denied what containers need: one with nothing but `true` tells.
trial=evenkeel-trial-$$
tar -C / -chf - bin/true $(ldd /bin/true | grep -o '/[^ ]*' | sed 's,^/,,') | docker import - "$trial" > /dev/null
if ! docker run --rm "$trial" /bin/true > "$scratch/trial.log" 2>&1; then
    cat "$scratch/trial.log"
    not_run "the engine cannot run containers here"
fi
docker rmi -f "$trial" > /dev/null

if [ -n "${COMPOSE:-}" ]; then
    $COMPOSE version > /dev/null || not_run "$COMPOSE does not work here"
elif docker compose version > /dev/null 2>&1; then
    COMPOSE="docker compose"
elif command -v docker-compose > /dev/null; then
    COMPOSE=docker-compose
else
    not_run "neither docker compose nor docker-compose is there"
fi
echo "compose: $($COMPOSE version | head -1), engine $(docker info -f '{{.ServerVersion}}')"
export COMPOSE

# A project, ports, addresses and secrets of its own: a demonstration that runs meanwhile is left alone.
export COMPOSE_PROJECT_NAME="evenkeel-test-$$" NETWORK="10.$((100 + $$ % 100))"
read -r EVENKEEL_PORT PROMETHEUS_PORT GRAFANA_PORT << PORTS
$(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(one.getsockname()[1] for one in held))')
PORTS
export EVENKEEL_PORT PROMETHEUS_PORT GRAFANA_PORT
export EVENKEEL_SECRETS="$scratch/secrets" EVENKEEL_TLS_SECRETS="$scratch/secrets"
"$here/secrets.sh" --tls > /dev/null

[ $# -gt 0 ] || set -- large small
# The small variant uses none but our own images.
images=--base
for variant in "$@"; do [ "$variant" = small ] || images=; done
"$here/standin/build.sh" $images > "$scratch/images"
cat "$scratch/images"
layers=
if grep -q '^standin crate:' "$scratch/images"; then
    echo "compose: CrateDB IS A STAND-IN: PostgreSQL keeps the data, its sys tables are made up"
    layers="$layers standin/compose.yml"
fi

build=
if [ -n "${EVENKEEL_BIN:-}" ]; then
    export EVENKEEL_PROGRAMS="$scratch/programs"
    mkdir "$EVENKEEL_PROGRAMS"
    cp "$here/standin/programs.Dockerfile" "$EVENKEEL_PROGRAMS/Dockerfile"
    cp "$here/rootfs.sh" "$EVENKEEL_BIN/evenkeel" "$EVENKEEL_BIN/app" "$EVENKEEL_PROGRAMS/"
    build=standin/build.yml
else
    # The Dockerfile needs BuildKit, and docker-compose 1.29 has to be told: README.md says how.
    export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1
fi

# What comes next runs in another folder.
[ -z "${EVENKEEL_PICTURES:-}" ] || EVENKEEL_PICTURES=$(realpath -m "$EVENKEEL_PICTURES")
cd "$here"
status=0
export EVENKEEL_OUTCOMES="$scratch/outcomes"
: > "$EVENKEEL_OUTCOMES"
for variant in "$@"; do
    case $variant in
        large) files="docker-compose.yml $layers $build" ;;
        small) files="compose.small.yml $build" ;;
        hardened) files="docker-compose.yml compose.hardened.yml $layers $build" ;;
        *) echo "test.sh: no such variant: $variant" >&2; exit 2 ;;
    esac
    python3 test.py "$variant" $files || status=1
done
echo
cat "$EVENKEEL_OUTCOMES"
exit $status
