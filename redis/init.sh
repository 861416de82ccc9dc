#!/bin/sh
# Forms the cluster: half of the nodes masters, half replicas. Does nothing to a cluster that is there already, so
# it runs at every start. Ends well only when every node sees a sound cluster and every replica its master.
#
#   init.sh redis-1:6379 redis-2:6379 …      six nodes or more, an even number
#   REDIS_INIT_SECONDS                        deadline of each step [default: 60]
set -eu
. "$(dirname "$0")/cli.sh"

[ $# -ge 6 ] || { echo "redis-init: give at least six nodes as HOST:PORT, not $#" >&2; exit 2; }
patience=${REDIS_INIT_SECONDS:-60}

node() { # HOST:PORT COMMAND…
    address=$1
    shift
    cli -h "${address%:*}" -p "${address##*:}" "$@" 2>/dev/null | tr -d '\r'
}

fact() { # HOST:PORT NAME, out of CLUSTER INFO
    node "$1" cluster info | sed -n "s/^$2://p"
}

each_answers() {
    for n in $nodes; do [ "$(node "$n" ping)" = PONG ] || { why="$n does not answer"; return 1; }; done
}

each_is_alone() {
    for n in $nodes; do
        [ "$(fact "$n" cluster_known_nodes)" = 1 ] && [ "$(fact "$n" cluster_slots_assigned)" = 0 ] || return 1
    done
}

each_is_sound() {
    for n in $nodes; do
        # The state alone says little: without cluster-require-full-coverage it stays `ok` when slots are lost.
        state=$(fact "$n" cluster_state) slots=$(fact "$n" cluster_slots_ok)
        known=$(fact "$n" cluster_known_nodes)
        why="$n sees state ${state:-none}, ${slots:-0} of 16384 slots served, ${known:-0} of $count nodes"
        # More than we were given is sound too: nodes may have been added since.
        [ "$state" = ok ] && [ "$slots" = 16384 ] && [ "${known:-0}" -ge "$count" ] || return 1
    done
}

each_replica_is_linked() {
    masters=0
    for n in $nodes; do
        replication=$(node "$n" info replication)
        case $replication in
            *role:slave*master_link_status:up*) ;;
            # Asked of itself: others may not have heard yet what it is.
            *role:master*) masters=$((masters + 1)) ;;
            *) why="$n is not linked to its master"; return 1 ;;
        esac
    done
}

wait_until() { # CONDITION
    waited=0
    until "$1"; do
        [ "$waited" -lt "$patience" ] || return 1
        [ $((waited % 5)) -ne 4 ] || echo "redis-init: waiting: $why"
        sleep 1
        waited=$((waited + 1))
    done
}

give_up() {
    echo "redis-init: gave up: $why" >&2
    node "$first" --cluster check "$first" >&2 || true
    exit 1
}

nodes=$* count=$# first=$1 why=""

wait_until each_answers || give_up
if each_is_alone; then
    echo "redis-init: forming a cluster of $count nodes"
    cli --cluster create $nodes --cluster-replicas 1 --cluster-yes
else
    echo "redis-init: there is a cluster already; it is left as it is"
fi
wait_until each_is_sound || {
    echo "redis-init: if forming the cluster broke off halfway, nothing is lost yet: \"begin anew\" in compose/README.md" >&2
    give_up
}
wait_until each_replica_is_linked || give_up
echo "redis-init: sound: $(fact "$first" cluster_known_nodes) nodes known, $masters of our $count are masters, 16384 slots, replicas linked"
