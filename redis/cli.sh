#!/bin/sh
# redis-cli with the cluster's password and, where it is on, TLS: `cli.sh -h redis-1 cluster nodes`. Other scripts
# here read it for its settings.

password_file=${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}
REDISCLI_AUTH=$(cat "$password_file") || exit 1
export REDISCLI_AUTH

cli() {
    if [ "${REDIS_TLS:-no}" = yes ]; then
        set -- --tls --cacert /run/secrets/tls_ca "$@"
    fi
    ${limit:-} redis-cli --no-auth-warning "$@"
}

# What one node, HOST:PORT, answers to a command: nothing if it does not within three seconds.
node() {
    (
        limit="timeout 3" address=$1
        shift
        cli -h "${address%:*}" -p "${address##*:}" "$@" 2> /dev/null
    ) | tr -d '\r'
}

case $0 in
    *cli.sh) cli "$@" ;;
esac
