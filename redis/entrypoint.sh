#!/bin/sh
# Starts one node: writes what differs between nodes, and the secrets, into a file that only this user can read,
# then becomes the server. Secrets stand in no command line and in no environment.
#
#   REDIS_NODE_NAME       name that clients are sent to; required
#   REDIS_NODE_ADDRESS    address that other nodes use [default: the container's own]
#   REDIS_PASSWORD_FILE   [default: /run/secrets/redis_password]
#   REDIS_TLS             yes: TLS for clients, replication and the bus, nothing in the clear [default: no]
#   REDIS_CONF_DIR        folder for the file, best on tmpfs [default: /tmp]
set -eu

: "${REDIS_NODE_NAME:?set it to the name under which clients reach this node}"
password_file=${REDIS_PASSWORD_FILE:-/run/secrets/redis_password}
conf=${REDIS_CONF_DIR:-/tmp}/redis.conf
here=$(cd "$(dirname "$0")" && pwd)

password=$(cat "$password_file")
if [ -z "$password" ]; then
    echo "redis: $password_file is empty: run compose/secrets.sh" >&2
    exit 1
fi

umask 077
{
    echo "include $here/redis.conf"
    echo "cluster-announce-hostname $REDIS_NODE_NAME"
    [ -z "${REDIS_NODE_ADDRESS:-}" ] || echo "cluster-announce-ip $REDIS_NODE_ADDRESS"
    # The same password twice: clients prove themselves to this node, this node as a replica to its master.
    echo "requirepass $password"
    echo "masterauth $password"
    if [ "${REDIS_TLS:-no}" = yes ]; then
        echo "port 0"
        echo "tls-port 6379"
        echo "tls-cluster yes"
        echo "tls-replication yes"
        echo "tls-ca-cert-file /run/secrets/tls_ca"
        echo "tls-cert-file /run/secrets/redis_tls_cert"
        echo "tls-key-file /run/secrets/redis_tls_key"
        # The password says who may come in; the certificate says who answers.
        echo "tls-auth-clients no"
        echo "tls-protocols \"TLSv1.2 TLSv1.3\""
    fi
} > "$conf"

exec redis-server "$conf" "$@"
