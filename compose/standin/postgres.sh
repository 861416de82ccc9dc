#!/bin/sh
# PostgreSQL in CrateDB's place, on the first node; the made-up sys tables on every node.
set -eu
PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
[ "${STANDIN_POSTGRES:-no}" = yes ] || exec python3 /cratedb_sql.py 0.0.0.0:4200

python3 /cratedb_sql.py 0.0.0.0:4200 &
if [ ! -s /data/pg/PG_VERSION ]; then
    initdb -D /data/pg -U evenkeel --auth-host=scram-sha-256 --auth-local=trust \
        --pwfile=/run/secrets/cratedb_password -E UTF8 --locale=C.UTF-8 > /dev/null
    echo "host all all all scram-sha-256" >> /data/pg/pg_hba.conf
fi
exec postgres -D /data/pg -h 0.0.0.0 -k /tmp -c shared_buffers=32MB -c max_connections=100
