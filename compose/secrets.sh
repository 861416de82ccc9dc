#!/bin/sh
# Makes the passwords and tokens of the compose demonstration, in compose/secrets/, which git ignores. What exists
# is left alone, so running it again changes nothing; delete a file to replace it.
#
#   secrets.sh          passwords and tokens
#   secrets.sh --tls    and the certificates of the hardened variant, by a certificate authority of their own
#   EVENKEEL_SECRETS    folder to write to [default: secrets, beside this script; then compose/.env, which compose reads,
#                       is told of it]
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${EVENKEEL_SECRETS:-$here/secrets}
mkdir -p "$folder"
# The folder keeps other users of this machine out. The files are readable, because each container reads its own
# as a user that this machine does not know.
chmod 700 "$folder"
cd "$folder"
umask 022

setting() { # NAME: says in .env where the secrets are, which the compose files ask for
    [ -z "${EVENKEEL_SECRETS:-}" ] || return 0
    if [ ! -e "$here/.env" ]; then
        echo "# Settings of compose on this machine, made by secrets.sh; README.md says what else may stand here." > "$here/.env"
    fi
    grep -q "^$1=" "$here/.env" && return
    # Whoever edited it may have left the last line open.
    [ -z "$(tail -c 1 "$here/.env")" ] || echo >> "$here/.env"
    echo "$1=./secrets" >> "$here/.env"
}

random() { # 32 bytes as hexadecimal digits: safe in every file that they end up in
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

for name in redis_password admin_token cratedb_password cratedb_exporter_password grafana_password; do
    [ -s "$name" ] && continue
    random > "$name.new"
    mv "$name.new" "$name"
    echo "made $name"
done

# The exporter wants a password for each target, by its address.
if [ ! -s redis_exporter_passwords ] || [ redis_password -nt redis_exporter_passwords ]; then
    password=$(cat redis_password)
    {
        printf '{'
        for n in 1 2 3 4 5 6 7; do
            [ "$n" = 1 ] || printf ','
            printf '"redis://redis-%s:6379":"%s","rediss://redis-%s:6379":"%s"' "$n" "$password" "$n" "$password"
        done
        printf '}\n'
    } > redis_exporter_passwords
    echo "made redis_exporter_passwords"
fi

setting EVENKEEL_SECRETS

[ "${1:-}" = --tls ] || exit 0
command -v openssl > /dev/null || { echo "secrets.sh: --tls needs openssl" >&2; exit 1; }

if [ ! -s tls_ca ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=Evenkeel compose" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -keyout tls_ca_key -out tls_ca 2> /dev/null
    chmod 600 tls_ca_key
    echo "made tls_ca"
fi

certificate() { # NAME SUBJECT-ALTERNATIVE-NAMES
    [ -s "$1_cert" ] && return
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
        -keyout "$1_key" -out "$1_request" 2> /dev/null
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nkeyUsage=digitalSignature\n' "$2" > "$1_extensions"
    openssl x509 -req -in "$1_request" -CA tls_ca -CAkey tls_ca_key -CAcreateserial -days 825 \
        -extfile "$1_extensions" -out "$1_cert" 2> /dev/null
    rm "$1_request" "$1_extensions"
    chmod 644 "$1_key"
    echo "made $1_cert"
}

names=DNS:localhost,IP:127.0.0.1
for n in 1 2 3 4 5 6 7; do names=$names,DNS:redis-$n,IP:10.88.0.1$n; done
certificate redis_tls "$names"
certificate evenkeel_tls "DNS:localhost,DNS:evenkeel,IP:127.0.0.1"
setting EVENKEEL_TLS_SECRETS
