#!/bin/sh
# Adds a node to the running cluster, or takes one out. Slots move while clients read and write: they are told by MOVED
# and ASK. A replica goes to the master that has fewest.
#
#   add-node.sh redis-7:6379 redis-1:6379              a master; redis-1 is any other node of the cluster
#   add-node.sh redis-8:6379 redis-1:6379 --replica
#   add-node.sh redis-7:6379 redis-1:6379 --remove     its slots first go to the others
#
#   REDIS_MOVE_SECONDS         for one move of slots: a node that hangs holds it up for good [default: 900]
#
# Each may break off at any point: started again it goes on from what it finds. A node that was taken out is reset
# (CLUSTER RESET HARD), and so is one that is added without being known to every other. Under its old id it would be
# banned for a minute after a CLUSTER FORGET, which nodes of Redis 7.2 and later pass on to each other.
set -eu
. "$(dirname "$0")/cli.sh"

[ $# -ge 2 ] || { sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2; }
new=$1 member=$2 how=${3:---master} move_seconds=${REDIS_MOVE_SECONDS:-900}
case $how in
    --master | --replica | --remove) ;;
    *) echo "add-node: $how is none of --master, --replica, --remove" >&2; exit 2 ;;
esac

fail() {
    echo "add-node: $*" >&2
    exit 1
}

# One at a time on this machine. Whatever is left of one that was killed, a redis-cli that still moves slots, keeps the
# lock as well.
exec 9> "${TMPDIR:-/tmp}/add-node.lock"
flock -n 9 || {
    echo "add-node: waiting for another one, or what is left of it, to end"
    flock 9
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

wait_until() { # SECONDS WHAT CONDITION…
    waiting_for=$2 begun=$(date +%s)
    told=$begun end=$((begun + $1))
    shift 2
    until "$@"; do
        now=$(date +%s)
        [ "$now" -lt "$end" ] || return 1
        [ $((now - told)) -lt 5 ] || { echo "add-node: waiting for $waiting_for: $((now - begun)) s"; told=$now; }
        sleep 1
    done
}

# Addresses of the nodes other than ours which are there, as `member` sees them.
others() {
    node "$member" cluster nodes | awk -v ours="$id" '
        $1 != ours && $3 !~ /(^|,)(fail\??|handshake|noaddr)(,|$)/ { sub(/@.*/, "", $2); print $2 }'
}

# Which of the others have our node in their tables: yes, no, or silent when they do not say.
others_that() { # yes|no|silent …
    for other in $(others); do
        knows=$(node "$other" cluster nodes | awk -v ours="$id" '
            $1 == ours { found = $3 ~ /myself/ ? "ourselves" : "yes" }
            END { print NR == 0 ? "silent" : found ? found : "no" }')
        case " $* " in *" $knows "*) echo "$other" ;; esac
    done
}

is_known_to_all() {
    [ -n "$(others)" ] && [ -z "$(others_that no silent)" ]
}

# Our node's own line in its table, without slots that are on their way.
ourselves() {
    node "$new" cluster nodes | awk '$3 ~ /myself/ { gsub(/ \[[^]]*\]/, ""); print }'
}

# By its own word or by that of `member`.
has_slots() {
    { ourselves; node "$member" cluster nodes | grep "^$id "; } | awk 'NF > 8 { found = 1 } END { exit !found }'
}

is_replica() {
    ourselves | awk '{ found = $3 ~ /slave/ } END { exit !found }'
}

# The master that has slots and the fewest replicas, but not our node.
master_with_fewest_replicas() {
    node "$member" cluster nodes | awk -v ours="$id" '
        $3 ~ /(^|,)(fail\??|handshake|noaddr)(,|$)/ { next }
        $3 ~ /master/ && NF > 8 && $1 != ours { master[++count] = $1 }
        $3 ~ /slave/ { replicas[$4]++ }
        END {
            for (i = 1; i <= count; i++) if (!best || replicas[master[i]] + 0 < replicas[best] + 0) best = master[i]
            print best
        }'
}

is_agreed() {
    (limit="timeout 20"; cli --cluster check "$member") > "$log" 2>&1
}

# All nodes agree on who has which slot, and none is on its way.
agree() {
    wait_until 60 "all nodes to agree on the slots" is_agreed_or_mended || { cat "$log" >&2; fail "the nodes do not agree on the slots"; }
}

# A move that broke off leaves a slot open, which may show only after a while. Nothing here answers the tool if it wants to
# know more.
is_agreed_or_mended() {
    is_agreed && return
    if grep -q -e '\[WARNING\]' "$log"; then
        (limit="timeout $move_seconds"; cli --cluster fix "$member") < /dev/null | grep -e '>>>' -e ERR || true
        is_agreed
    else
        return 1
    fi
}

balance() {
    agree
    # Slots move in batches; a cluster still gossiping about the last change refuses, so this tries again.
    attempt=0
    while :; do
        status=0
        (limit="timeout $move_seconds"; cli --cluster rebalance "$member" --cluster-threshold 1 --cluster-pipeline 50 "$@") \
            > "$log" || status=$?
        [ "$status" -ne 0 ] || break
        # That of `timeout`.
        [ "$status" -ne 124 ] || fail "the slots were not moved within $move_seconds s (REDIS_MOVE_SECONDS). Does a node hang?" \
            "\`cli.sh --cluster check $member\` stops at it. Repeat this when all answer: it goes on from here"
        attempt=$((attempt + 1))
        cat "$log" >&2
        [ "$attempt" -lt 6 ] || fail "the slots could not be moved"
        sleep 5
        agree
    done
    # A character for each slot moved tells nobody anything.
    grep -v '^#*$' "$log" || true
    agree
}

# A node that has just met the others takes a moment to see a majority of masters. Until then it is in the state `fail`
# and answers CLUSTERDOWN for every slot that reaches it.
is_sound() {
    [ "$(node "$new" cluster info | grep -c -x -e cluster_state:ok -e cluster_slots_ok:16384)" -eq 2 ]
}

is_linked() {
    [ "$(node "$new" info replication | grep -c -x -e role:slave -e master_link_status:up)" -eq 2 ]
}

# No other node knows ours afterwards, and it knows none. Not for a node with slots.
leave() {
    wait_until 60 "all others to forget it" forget || fail "these do not forget $new ($id): $(others_that yes silent)"
    absent=$(node "$member" cluster nodes | awk -v ours="$id" '$1 != ours && $3 ~ /(^|,)fail\??(,|$)/ && $3 !~ /noaddr/ { print $2 }')
    [ -z "$absent" ] || echo "add-node: not told, since they are away: $absent. When they are back and it is in \`cluster nodes\` again:" \
        "cli.sh --cluster call $member cluster forget $id"
    [ -n "$(ourselves)" ] || { echo "add-node: $new does not answer, so it is not reset: repeat this when it does"; return; }
    answer=$(node "$new" cluster reset hard)
    [ "$answer" = OK ] || fail "$new cannot be reset: ${answer:-no answer}. FLUSHALL there first if its keys are not needed"
    id=$(node "$new" cluster myid)
}

# Whether all had forgotten it a second ago. Those who had not are told now; one that hears of it by gossip meanwhile is
# told the next time.
forget() {
    known_to=$(others_that yes silent)
    for other in $known_to; do
        # It would not forget its own master.
        if [ "$(node "$other" cluster nodes | awk '$3 ~ /myself/ { print $4 }')" = "$id" ]; then
            node "$other" cluster replicate "$(master_with_fewest_replicas)" > /dev/null
        fi
        node "$other" cluster forget "$id" > /dev/null
    done
    [ -z "$known_to" ]
}

# A node with ties to another cluster was named by mistake.
must_not_belong_elsewhere() {
    here=$(node "$member" cluster nodes | awk '{ printf "%s ", $1 }')
    node "$new" cluster nodes | awk -v here="$here" '
        BEGIN { count = split(here, ids); for (i = 1; i <= count; i++) ours[ids[i]] = 1 }
        $3 ~ /handshake/ || $3 ~ /myself/ { next }
        $1 in ours { shared = 1 }
        { foreign = 1 }
        END { exit !shared && foreign }' || fail "$new belongs to another cluster: it knows nodes, but none of those that $member knows"
}

join() {
    # The cluster's address of the member, since CLUSTER MEET takes no names: IP:PORT@BUS,NAME.
    found=$(node "$member" cluster nodes | awk '$3 ~ /myself/ { sub(/,.*/, "", $2); print $2 }')
    ip=${found%:*} ports=${found##*:}
    answer=$(node "$new" cluster meet "${ip:-${member%:*}}" "${ports%@*}" "${ports#*@}")
    [ "$answer" = OK ] || fail "$new does not meet $member: ${answer:-no answer}"
}

[ -n "$(node "$member" cluster nodes)" ] || fail "$member does not answer"
id=$(ourselves | awk '{ print $1 }')
if [ -z "$id" ]; then
    [ "$how" = --remove ] || fail "$new does not answer"
    # By its address or its name.
    line=$(node "$member" cluster nodes | awk -v at="$new" '
        { split($2, part, /[@,]/); port = part[1]; sub(/.*:/, "", port) }
        part[1] == at || part[3] ":" port == at')
    [ -n "$line" ] || fail "$new does not answer, and $member does not know it"
    id=${line%% *}
    [ "$(echo "$line" | awk '{ print NF }')" -le 8 ] || fail "$new does not answer and still has slots: start it, or wait for its replica to take over"
    echo "add-node: $new does not answer: the others forget it"
    leave
    exit
fi
[ "$(others | wc -l)" -gt 0 ] || fail "$member knows no other node: it is no member of a cluster"
must_not_belong_elsewhere

if [ "$how" = --remove ]; then
    if has_slots; then
        echo "add-node: moving the slots of $new away"
        balance --cluster-weight "$id=0"
        ! has_slots || fail "$new still has slots"
    fi
    if [ -n "$(others_that yes silent)" ] || [ "$(node "$new" cluster nodes | wc -l)" -gt 1 ]; then
        echo "add-node: the others forget $new, then it is reset"
        leave
    else
        echo "add-node: $new is no member"
    fi
    agree
    exit
fi

if ! is_known_to_all; then
    # An earlier attempt may just have introduced it.
    if has_slots || [ "$(node "$new" cluster nodes | wc -l)" -gt 1 ]; then
        echo "add-node: $new knows others that do not know it: waiting for them to hear of it"
        wait_until 10 "the others to hear of $new" is_known_to_all || true
    fi
fi
if ! is_known_to_all; then
    ! has_slots || fail "$new has slots, and these do not know it: $(others_that no silent)"
    leave
    join
    wait_until 60 "all others to know $new" is_known_to_all || fail "these do not know $new: $(others_that no silent)"
fi
# The others must know it, and it them, before slots go there.
wait_until 60 "$new to see a sound cluster" is_sound || fail "$new does not see a sound cluster"
if [ "$how" = --replica ]; then
    if ! is_replica; then
        ! has_slots || fail "$new is a master with slots: take it out first, with --remove"
        answer=$(node "$new" cluster replicate "$(master_with_fewest_replicas)")
        [ "$answer" = OK ] || fail "$new does not become a replica: ${answer:-no answer}"
    fi
    wait_until 60 "its master's data" is_linked || fail "$new is not linked to its master"
else
    ! is_replica || fail "$new is a replica: take it out first, with --remove"
    balance --cluster-use-empty-masters
fi
cli --cluster info "$member"
