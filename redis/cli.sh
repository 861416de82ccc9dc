#!/bin/sh
# redis-cli with the cluster's password and, where it is on, TLS: `cli.sh -h redis-1 cluster nodes`. Other scripts
# here read it for its settings.

password_file=${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}
REDISCLI_AUTH=$(cat "$password_file") || exit 1
export REDISCLI_AUTH

cli() {
    if [ "${REDIS_TLS:-no}" = yes ]; then
        redis-cli --tls --cacert /run/secrets/tls_ca --no-auth-warning "$@"
    else
        redis-cli --no-auth-warning "$@"
    fi
}

case $0 in
    *cli.sh) cli "$@" ;;
esac
