#!/bin/sh
# Builds the stand-ins for whichever of the official images the engine does not have: Debian packages under the
# official names, on a base by debootstrap. Prints `standin NAME` for each image that is one, `official NAME` else.
# With EVENKEEL_BIN, the base also for our two images of the programs in that folder; with --base, nothing else.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
base=evenkeel-standin/base packages=evenkeel-standin/packages
export DOCKER_BUILDKIT=0

has() { docker image inspect "$1" > /dev/null 2>&1; }

make_base() {
    has "$base" && return
    command -v debootstrap > /dev/null || { echo "standin: debootstrap is missing" >&2; exit 1; }
    root=$(mktemp -d)
    echo "standin: making a base image from Debian packages" >&2
    debootstrap --variant=minbase --include=ca-certificates bookworm "$root/base" > "$root/log" 2>&1 \
        || { tail -5 "$root/log" >&2; exit 1; }
    tar -C "$root/base" -c --exclude=./var/cache/apt/archives/* . | docker import - "$base" > /dev/null
    rm -rf "$root"
}

official() {
    label=$(docker image inspect -f '{{index .Config.Labels "standin"}}' "$1" 2> /dev/null) || return 1
    [ -z "$label" ] || [ "$label" = "<no value>" ]
}

image() { # TARGET NAME
    if ! official "$2" && ! { [ "${EVENKEEL_PULL:-no}" = yes ] && docker pull -q "$2" > /dev/null 2>&1; }; then
        make_base
        # With a name of its own it outlives the stand-ins, which test.sh removes.
        docker build --network host -q -f "$here/Dockerfile" --target debian -t "$packages" "$here" > /tmp/standin.log 2>&1 \
            || { tail -5 /tmp/standin.log >&2; exit 1; }
        docker build --network host -q -f "$here/Dockerfile" --target "$1" -t "$2" "$here" > /tmp/standin.log 2>&1 \
            || { tail -5 /tmp/standin.log >&2; exit 1; }
    fi
    if official "$2"; then echo "official $2"; else echo "standin $2"; fi
}

if [ "${1:-}" != --base ]; then
    image redis redis:7.2.11
    image prometheus prom/prometheus:v3.5.0
    image redis-exporter oliver006/redis_exporter:v1.89.0-alpine
    image cratedb crate:6.4.1
    image grafana grafana/grafana:12.2.1
fi
# What build.yml builds on.
[ -z "${EVENKEEL_BIN:-}" ] || make_base
