#!/bin/sh
# Whether this node answers and, once it belongs to a cluster, whether its cluster is sound: all slots served. A node
# that belongs to none yet is healthy: forming the cluster waits for that.
. "$(dirname "$0")/cli.sh"

[ "$(cli ping)" = PONG ] || { echo "no answer to PING"; exit 1; }
info=$(cli cluster info | tr -d '\r')
says() { echo "$info" | grep -q -x "$1"; }

says cluster_known_nodes:1 && exit 0
# Without cluster-require-full-coverage the state stays `ok` when slots are lost.
says cluster_state:ok && says cluster_slots_ok:16384 && exit 0
echo "$info" | grep -e '^cluster_state' -e '^cluster_slots_ok'
exit 1
