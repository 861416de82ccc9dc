#!/bin/sh
# Whether this node answers and, once it belongs to a cluster, whether its cluster is sound. A node that belongs
# to none yet is healthy: forming the cluster waits for that.
. "$(dirname "$0")/cli.sh"

[ "$(cli ping)" = PONG ] || { echo "no answer to PING"; exit 1; }
info=$(cli cluster info | tr -d '\r')
echo "$info" | grep -x -e cluster_state:ok -e cluster_known_nodes:1 || { echo "$info" | head -1; exit 1; }
