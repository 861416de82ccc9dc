#!/bin/sh
# Lays out the root of an image for one program: the program, the libraries it links, certificates, a user of its
# own and, owned by that user, the folders it writes to.
#
#   rootfs.sh PROGRAM ROOT [WRITABLE-FOLDER…]
set -eu

program=$1 root=$2
shift 2
user=65532

mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs" "$root/tmp"
cp "$program" "$root/usr/local/bin/"

# The loader and each library, at the path where the program looks for it.
ldd "$program" | grep -o '/[^ ]*' | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo "app:x:$user:$user::/:/" > "$root/etc/passwd"
echo "app:x:$user:" > "$root/etc/group"
# Names of other containers: those that the engine puts into /etc/hosts first, then its name server.
echo "hosts: files dns" > "$root/etc/nsswitch.conf"

chmod 1777 "$root/tmp"
for folder in "$@"; do
    mkdir -p "$root$folder"
    chown "$user:$user" "$root$folder"
    chmod 700 "$root$folder"
done
