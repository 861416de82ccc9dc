#!/bin/sh
# Adds a node to the running cluster. A master gets its share of the slots, which move while clients read and
# write: they are told by MOVED and ASK. A replica goes to the master that has fewest.
#
#   add-node.sh redis-7:6379 redis-1:6379              a master; redis-1 is any node of the cluster
#   add-node.sh redis-8:6379 redis-1:6379 --replica
#
# The way back: add-node.sh redis-7:6379 redis-1:6379 --remove, which moves the slots away first.
set -eu
. "$(dirname "$0")/cli.sh"

[ $# -ge 2 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
new=$1 member=$2 how=${3:---master}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

node() { # HOST:PORT COMMAND…
    address=$1
    shift
    cli -h "${address%:*}" -p "${address##*:}" "$@" | tr -d '\r'
}

balance() {
    # Slots move in batches; a cluster still gossiping about the last change refuses, so this tries again.
    attempt=0
    until cli --cluster rebalance "$member" --cluster-threshold 1 --cluster-pipeline 50 "$@" > "$log"; do
        attempt=$((attempt + 1))
        cat "$log" >&2
        [ "$attempt" -lt 6 ] || { echo "add-node: the slots could not be moved" >&2; exit 1; }
        sleep 5
        cli --cluster fix "$member" || true
    done
    # A character for each slot moved tells nobody anything.
    grep -v '^#*$' "$log"
}

agreed() {
    tries=0
    until cli --cluster check "$member" > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { cli --cluster check "$member" >&2; exit 1; }
        sleep 1
    done
}

# A node that has just met the others takes a moment to see a majority of masters. Until then it is in the state `fail`
# and answers CLUSTERDOWN for every slot that reaches it.
sound() { # HOST:PORT
    tries=0
    until [ "$(node "$1" cluster info | grep -c -x -e cluster_state:ok -e cluster_slots_ok:16384)" -eq 2 ]; do
        tries=$((tries + 1))
        [ "$tries" -lt 60 ] || { echo "add-node: $1 does not see a sound cluster" >&2; exit 1; }
        sleep 1
    done
}

# Until gossip has told the last node of a new one, that node refuses to forget it, and a removal would end halfway:
# those that have forgotten take no notice of it for a minute, then hear of it again.
everybody_knows() { # ID
    tries=0
    while
        told=$(cli --cluster call "$member" cluster nodes | tr -d '\r')
        [ "$(echo "$told" | grep -c "\(^\|: \)$1 ")" -ne "$(echo "$told" | grep -c myself)" ]
    do
        tries=$((tries + 1))
        [ "$tries" -lt 90 ] || { echo "add-node: not every node knows $1" >&2; exit 1; }
        sleep 1
    done
}

id=$(node "$new" cluster myid)
if [ "$how" = --remove ]; then
    case $(node "$new" role | head -n 1) in
        master)
            echo "add-node: moving the slots of $new away, then forgetting it"
            balance --cluster-weight "$id=0"
            agreed
            ;;
        # It has no slots, and redis-cli refuses a weight for it.
        slave) echo "add-node: forgetting the replica $new" ;;
        *) echo "add-node: $new does not say what it is" >&2; exit 1 ;;
    esac
    everybody_knows "$id"
    cli --cluster del-node "$member" "$id"
    agreed
    exit
fi

known=$(node "$member" cluster nodes | grep -c "^$id " || true)
if [ "$known" -eq 0 ]; then
    case $how in
        --replica) cli --cluster add-node "$new" "$member" --cluster-slave ;;
        --master) cli --cluster add-node "$new" "$member" ;;
        *) echo "add-node: $how is none of --master, --replica, --remove" >&2; exit 2 ;;
    esac
fi
# Every node must have heard of the new one, and the new one of them, before slots go there.
agreed
everybody_knows "$id"
sound "$new"
if [ "$how" = --master ]; then
    balance --cluster-use-empty-masters
    agreed
fi
cli --cluster info "$member"
