#!/bin/sh
# Records where pingora-ketama sends clients, in ketama.csv: each client with the backends in the order in which it would
# be sent to them if those before were lost. Run again only for another version of the crate.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
mkdir "$work/src"
cat >"$work/Cargo.toml" <<'TOML'
[package]
name = "record"
version = "0.0.0"
edition = "2024"

[dependencies]
pingora-ketama = "=0.9.1"
TOML
cat >"$work/src/main.rs" <<'RUST'
use std::net::{Ipv4Addr, Ipv6Addr};

use pingora_ketama::{Bucket, Continuum};

fn main() {
    let nodes = [("10.0.0.1:80", 1), ("10.0.0.2:80", 2), ("192.168.7.9:8080", 5), ("127.0.0.1:9001", 1), ("172.16.31.4:443", 3)];
    let buckets: Vec<_> = nodes.iter().map(|(node, weight)| Bucket::new(node.parse().unwrap(), *weight)).collect();
    let ring = Continuum::new(&buckets);
    for (node, weight) in nodes {
        println!("# {node} weight {weight}");
    }
    // From many networks, spread by two large primes.
    let four = (0..300u32).map(|i| Ipv4Addr::from(0x0a00_0001u32.wrapping_add(i.wrapping_mul(179_424_673))).to_string());
    let six = (0..100u128).map(|i| Ipv6Addr::from((0x2001_0db8u128 << 96) | (i << 64) | (i * 15_485_863)).to_string());
    for client in four.chain(six) {
        let mut order: Vec<String> = Vec::new();
        for node in ring.node_iter(client.as_bytes()) {
            let node = node.to_string();
            if !order.contains(&node) {
                order.push(node);
            }
            if order.len() == nodes.len() {
                break;
            }
        }
        println!("{client},{}", order.join(","));
    }
}
RUST
cargo run --quiet --manifest-path "$work/Cargo.toml" >"$here/ketama.csv"
