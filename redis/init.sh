#!/bin/sh
# Forms the cluster: half of the nodes masters, half replicas. Runs at every start: a cluster that is there is left as it
# is, but for nodes that are not in it yet, which become replicas.
#
#   init.sh redis-1:6379 redis-2:6379 …      six nodes or more, an even number
#
#   REDIS_INIT_SECONDS         for more than half of the nodes to answer, then for all slots to be served [default: 60]
#   REDIS_INIT_GRACE_SECONDS   how long to wait for the rest [default: 15]
#
# Ends well once all slots are served, though single nodes may be broken: it names them, and adds them when it is run
# again. May break off at any point and be started again.
set -eu
here=$(dirname "$0")
. "$here/cli.sh"

[ $# -ge 6 ] || { echo "redis-init: give at least six nodes as HOST:PORT, not $#" >&2; exit 2; }
patience=${REDIS_INIT_SECONDS:-60} grace=${REDIS_INIT_GRACE_SECONDS:-15}
nodes=$* count=$# majority=$(($# / 2 + 1)) why="" absent=""

say() {
    echo "redis-init: $*"
}

give_up() {
    say "gave up: $why" >&2
    (limit="timeout 10"; cli --cluster check "${anchor:-$1}") >&2 || true
    exit 1
}

wait_until() { # SECONDS CONDITION…
    # By the clock: a node that hangs or whose name is gone makes each turn take seconds.
    told=$(date +%s) end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        now=$(date +%s)
        [ "$now" -lt "$end" ] || return 1
        [ $((now - told)) -lt 5 ] || { say "waiting: $why"; told=$now; }
        sleep 1
    done
}

fact() { # HOST:PORT NAME, out of CLUSTER INFO
    node "$1" cluster info | sed -n "s/^$2://p"
}

# Sets `present` and `absent`.
look() {
    present="" absent=""
    for n in $nodes; do
        if [ "$(node "$n" ping)" = PONG ]; then present="$present $n"; else absent="$absent $n"; fi
    done
    why="no answer of$absent"
}

a_majority_answers() {
    look
    [ "$(echo "$present" | wc -w)" -ge "$majority" ]
}

# Sets `anchor`: a node that sees an owner for each slot, and is not the only one to believe that it is a member.
is_formed() {
    for n in $present; do
        [ "$(fact "$n" cluster_slots_assigned)" = 16384 ] || continue
        id=$(node "$n" cluster myid)
        for other in $present; do
            [ "$other" != "$n" ] || continue
            if node "$other" cluster nodes | grep -q "^$id "; then anchor=$n; return; fi
        done
    done
    why="the nodes know no owner for each slot"
    return 1
}

# Whether the cluster knows a node that does not answer: then there is nothing to add.
is_member_by_name() { # HOST:PORT
    node "$anchor" cluster nodes | awk -v at="$1" '
        { split($2, part, /[@,]/); port = part[1]; sub(/.*:/, "", port) }
        part[1] == at || part[3] ":" port == at { found = 1 }
        END { exit !found }'
}

nobody_is_missing() {
    look
    [ -n "$absent" ] || return 0
    is_formed || { why="no answer of$absent"; return 1; }
    for n in $absent; do is_member_by_name "$n" || { why="no answer of $n, which is to be added"; return 1; }; done
}

form() {
    # What broke off halfway has served nobody. A node that has keys refuses this.
    for n in $present; do
        [ "$(node "$n" cluster nodes | wc -l)" -eq 1 ] && [ "$(fact "$n" cluster_slots_assigned)" = 0 ] && continue
        say "$n is left from an attempt that broke off: it is reset"
        answer=$(node "$n" cluster reset hard)
        [ "$answer" = OK ] || { why="$n cannot be reset: $answer: \"begin anew\" in compose/README.md"; return 1; }
    done
    # shellcheck disable=SC2086
    set -- $present
    if [ $# -eq "$count" ]; then
        replicas=1
    else
        replicas=0
        while [ $# -gt $((count / 2)) ]; do shift; done
    fi
    say "forming a cluster: $# nodes, $replicas replicas of each master"
    (limit="timeout 60"; cli --cluster create "$@" --cluster-replicas "$replicas" --cluster-yes) || true
    wait_until 10 is_formed
}

# As more than half of the members see it. The state alone says little: without cluster-require-full-coverage it stays
# `ok` when slots are lost.
slots_are_served() {
    members=0 agreeing=0
    for n in $present; do
        [ "$(fact "$n" cluster_known_nodes)" != 1 ] || continue
        members=$((members + 1))
        state=$(fact "$n" cluster_state) slots=$(fact "$n" cluster_slots_ok)
        if [ "$state" = ok ] && [ "$slots" = 16384 ]; then
            agreeing=$((agreeing + 1))
        else
            why="$n sees state ${state:-none}, ${slots:-0} of 16384 slots served"
        fi
    done
    [ $((agreeing * 2)) -gt "$members" ]
}

# Known to the cluster, and with a part in it.
is_settled() { # HOST:PORT
    line=$(node "$1" cluster nodes | awk '$3 ~ /myself/')
    node "$anchor" cluster nodes | grep -q "^${line%% *} " || return 1
    echo "$line" | awk '{ found = $3 ~ /slave/ || NF > 8 } END { exit !found }'
}

# Whether the others have seen it, where a node has lost its volume and come back under another id.
lost_ids_are_gone() {
    for n in $present; do
        id=$(node "$n" cluster myid)
        node "$anchor" cluster nodes | awk -v at="$n" -v id="$id" '
            { split($2, part, /[@,]/); port = part[1]; sub(/.*:/, "", port) }
            (part[1] == at || part[3] ":" port == at) && $1 != id { found = 1 }
            END { exit found }' || { why="$n has come back under another id"; return 1; }
    done
}

# Sets `orphans`: replicas of a master that is nowhere, since it lost its volume and came back under another id before
# one of them had taken over. To the cluster that master is not down but without an address, so no replica is elected.
nobody_is_orphaned() {
    orphans=""
    for n in $present; do
        node "$n" cluster nodes | awk '
            $3 ~ /myself/ && $3 ~ /slave/ { master = $4 }
            $3 ~ /(^|,)noaddr(,|$)/ { nowhere[$1] = 1 }
            END { exit master != "" && (master in nowhere) }' || orphans="$orphans $n"
    done
    why="the master of$orphans is nowhere"
    [ -z "$orphans" ]
}

# One for each lost master.
promote_orphans() {
    lost=""
    for n in $orphans; do
        id=$(node "$n" cluster nodes | awk '$3 ~ /myself/ && $3 ~ /slave/ { print $4 }')
        case " $lost " in *" $id "*) continue ;; esac
        say "$n takes over from $id, which is nowhere any more"
        answer=$(node "$n" cluster failover takeover)
        [ "$answer" = OK ] || say "$n does not take over: ${answer:-no answer}"
        lost="$lost $id"
    done
}

# A node that lost its volume has come back under another id. Its old one has neither slots nor an address.
forget_lost_ids() {
    for id in $(node "$anchor" cluster nodes | awk '$3 ~ /(^|,)noaddr(,|$)/ && NF <= 8 { print $1 }'); do
        say "$id is nowhere any more: forgetting it"
        (limit="timeout 20"; cli --cluster call "$anchor" cluster forget "$id") > /dev/null || true
    done
}

# Sets `masters`.
replicas_are_linked() {
    masters=0
    for n in $present; do
        replication=$(node "$n" info replication)
        case $replication in
            *role:slave*master_link_status:up*) ;;
            *role:master*) masters=$((masters + 1)) ;;
            *) why="$n is not linked to its master"; return 1 ;;
        esac
    done
}

wait_until "$patience" a_majority_answers || give_up "$1"
wait_until "$grace" nobody_is_missing || say "going on without$absent"
if wait_until 0 is_formed; then
    say "there is a cluster; it is left as it is"
else
    # One that is just being formed, by a job that was killed, is given a moment.
    is_blank=yes
    for n in $present; do [ "$(node "$n" cluster nodes | wc -l)" -eq 1 ] || is_blank=no; done
    [ $is_blank = yes ] || wait_until 10 is_formed || true
    tries=0
    until is_formed || form; do
        tries=$((tries + 1))
        [ "$tries" -lt 3 ] || give_up "$1"
        look
    done
fi
wait_until "$grace" lost_ids_are_gone || true
wait_until 10 nobody_is_orphaned || promote_orphans
wait_until "$patience" slots_are_served || give_up "$1"

for n in $present; do
    is_settled "$n" && continue
    say "adding $n as a replica"
    sh "$here/add-node.sh" "$n" "$anchor" --replica || { say "$n could not be added" >&2; absent="$absent $n"; }
done
forget_lost_ids
wait_until "$grace" replicas_are_linked || say "going on: $why"
say "all 16384 slots are served: $(fact "$anchor" cluster_known_nodes) nodes known, $masters of our $count are masters"
[ -z "$absent" ] || say "MISSING:$absent. Once mended, \`docker compose up -d\` adds what is not in the cluster yet"
