//! Consistent hashing by the client's address, with the same points as nginx's `hash $remote_addr consistent`: crc32,
//! 160 points per unit of weight. The ring contains every backend of the pool, and a lookup skips those without
//! traffic, so that losing a backend moves only its own clients.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use super::{BackendIndex, Balance, Candidates, Key, Member};
use crate::config::backend::{BackendAddress, UNIX, Weight};

const POINTS_PER_WEIGHT: u64 = 160;

/// Limit on the points of a ring: 128 MiB. Beyond it the weights are scaled down.
const MAX_POINTS: u64 = 1 << 24;

/// Points on a circle, each belonging to a backend. Depends only on addresses and weights, not on their order.
#[derive(Debug)]
pub struct Ring {
    /// Sorted by hash, without duplicates.
    points: Box<[(u32, BackendIndex)]>,
    /// The addresses and weights that it was built from.
    parts: Box<[(BackendAddress, Weight)]>,
}

#[derive(Debug)]
pub(super) struct IpHash {
    ring: Arc<Ring>,
}

impl Ring {
    pub fn new(members: &[Member]) -> Self {
        Self::of(members.iter().map(|member| (&member.backend.address, member.weight)))
    }

    /// The ring for these addresses and weights.
    pub fn of<'a>(parts: impl Iterator<Item = (&'a BackendAddress, Weight)>) -> Self {
        let parts: Box<[_]> = parts.map(|(address, weight)| (address.clone(), weight)).collect();
        let weights = parts.iter().map(|(_, weight)| u64::from(weight.as_u32())).sum::<u64>();
        // The winner among equal hashes must not depend on the order of the configuration, so the address decides.
        let mut by_address: Vec<(BackendIndex, &(BackendAddress, Weight))> = (0..).zip(&parts).collect();
        by_address.sort_by_key(|(_, (address, _))| address.as_str());
        let mut points = Vec::with_capacity((weights * POINTS_PER_WEIGHT).min(MAX_POINTS) as usize);
        for (index, (address, weight)) in by_address {
            points.extend(hashes(address).take(points_of(*weight, weights) as usize).map(|hash| (hash, index)));
        }
        points.sort_by_key(|&(hash, _)| hash);
        points.dedup_by_key(|&mut (hash, _)| hash);
        Self { points: points.into_boxed_slice(), parts }
    }

    /// Whether it was built for these backends in this order.
    pub fn is_of<'a>(&self, mut parts: impl Iterator<Item = (&'a BackendAddress, Weight)>) -> bool {
        let mut mine = self.parts.iter();
        let is_next = |part| mine.next().is_some_and(|(address, weight)| (address, *weight) == part);
        parts.all(is_next) && mine.next().is_none()
    }

    /// The backend of the first point at or after `hash` that `accepts` it.
    fn find(&self, hash: u32, accepts: impl Fn(BackendIndex) -> bool) -> Option<BackendIndex> {
        let start = self.points.partition_point(|&(point, _)| point < hash);
        let (before, from) = self.points.split_at(start);
        from.iter().chain(before).map(|&(_, index)| index).find(|&index| accepts(index))
    }
}

impl IpHash {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring }
    }
}

impl Balance for IpHash {
    fn pick(&self, candidates: &Candidates<'_>, key: &Key) -> Option<BackendIndex> {
        // Without this check, a lookup without candidates would walk the whole ring.
        candidates.iter().next()?;
        let accepts = |index| candidates.usable.contains(index) && !candidates.is_excluded(index);
        self.ring.find(hash_of(key.client), accepts)
    }
}

/// The number of points of a backend. `weights` is the sum of all backends'.
fn points_of(weight: Weight, weights: u64) -> u64 {
    let points = u64::from(weight.as_u32()) * POINTS_PER_WEIGHT;
    let total = weights * POINTS_PER_WEIGHT;
    if total > MAX_POINTS { (points * MAX_POINTS / total).max(1) } else { points }
}

/// crc32 of the address as text, as in `$remote_addr`. All clients without an address have the same hash.
fn hash_of(client: Option<IpAddr>) -> u32 {
    struct Crc(crc32fast::Hasher);
    impl Write for Crc {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.update(text.as_bytes());
            Ok(())
        }
    }
    let mut crc = Crc(crc32fast::Hasher::new());
    // Formatting an address cannot fail, nor can this writer.
    let _ = match client {
        Some(client) => write!(crc, "{client}"),
        None => crc.write_str(UNIX),
    };
    crc.0.finalize()
}

/// A backend's points: crc32 of host, NUL, port and the previous point (four zero bytes for the first). For a Unix
/// socket the path replaces the host, without a port; an SRV name has no port either.
fn hashes(address: &BackendAddress) -> impl Iterator<Item = u32> {
    let text = address.as_str();
    let (host, port) = match address.unix_path() {
        Some(_) => (text.strip_prefix(UNIX).unwrap_or(text), ""),
        None if address.service().is_some() => (text, ""),
        None => text.rsplit_once(':').unwrap_or((text, "")),
    };
    let mut base = crc32fast::Hasher::new();
    base.update(host.as_bytes());
    base.update(&[0]);
    base.update(port.as_bytes());
    let next = move |previous: u32| {
        let mut hasher = base.clone();
        hasher.update(&previous.to_le_bytes());
        hasher.finalize()
    };
    std::iter::successors(Some(next(0)), {
        let next = next.clone();
        move |&previous| Some(next(previous))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded by `test-data/record.sh`. For IPv6, only clients are compared: the crate omits the brackets around a
    /// node's address, which nginx hashes.
    #[test]
    fn ip_hash_maps_clients_as_ketama_does_before_and_after_a_loss() {
        let recorded = include_str!("ip_hash/test-data/ketama.csv");
        let (nodes, clients): (Vec<&str>, Vec<&str>) = recorded.lines().partition(|line| line.starts_with('#'));
        let part = |line: &&str| {
            let (address, weight) = line.trim_start_matches("# ").split_once(" weight ").expect("a node");
            let weight = weight.parse().ok().and_then(Weight::new).expect("a weight");
            (address.parse::<BackendAddress>().expect("an address"), weight)
        };
        let parts: Vec<_> = nodes.iter().map(part).collect();
        let ring = Ring::of(parts.iter().map(|(address, weight)| (address, *weight)));
        assert!(parts.len() == 5 && clients.len() == 400, "the record is whole");
        for line in clients {
            let mut columns = line.split(',');
            let client: IpAddr = columns.next().and_then(|client| client.parse().ok()).expect("a client");
            let mut lost = Vec::new();
            for expected in columns {
                let index = ring.find(hash_of(Some(client)), |index| !lost.contains(&index)).expect("one is left");
                assert_eq!(parts[index as usize].0.as_str(), expected, "{line} without {lost:?}");
                lost.push(index);
            }
            assert_eq!(lost.len(), parts.len(), "{line}");
        }
    }

    #[test]
    fn backends_without_port_and_clients_without_address_are_hashed_as_documented() {
        for (address, hashed) in [
            ("web:80", &b"web\x0080\0\0\0\0"[..]),
            ("unix:/run/app.sock", b"/run/app.sock\0\0\0\0\0"),
            ("srv:_http._tcp.app.example", b"srv:_http._tcp.app.example\0\0\0\0\0"),
        ] {
            let parsed = address.parse().expect("an address");
            let mut points = hashes(&parsed);
            let first = crc32fast::hash(hashed);
            let second = crc32fast::hash(&[&hashed[..hashed.len() - 4], &first.to_le_bytes()].concat());
            assert_eq!([points.next(), points.next()], [Some(first), Some(second)], "{address}");
        }
        assert_eq!(hash_of(None), crc32fast::hash(b"unix:"));
    }

    #[test]
    fn a_hash_leads_to_the_point_at_it_or_the_next_one() {
        let ring = Ring { points: [(10, 0), (20, 1), (30, 2)].into(), parts: Box::default() };
        for (hash, expected) in [(0, 0), (10, 0), (11, 1), (20, 1), (30, 2), (31, 0)] {
            assert_eq!(ring.find(hash, |_| true), Some(expected), "{hash}");
        }
    }

    #[test]
    fn a_ring_at_its_size_limit_keeps_the_proportions() {
        let weight = |weight| Weight::new(weight).expect("a weight");
        let most = MAX_POINTS / POINTS_PER_WEIGHT;
        assert_eq!(points_of(weight(3), most), 480);
        assert_eq!(points_of(weight(1000), most * 2), 80_000);
        assert_eq!(points_of(weight(1), most * 1000), 1, "none is left out");
    }

    #[test]
    fn a_ring_is_kept_only_for_the_same_backends_in_the_same_order() {
        let part = |address: &str, weight| {
            (address.parse::<BackendAddress>().expect("an address"), Weight::new(weight).expect("a weight"))
        };
        let built = [part("web:80", 1), part("web:81", 2)];
        let each = |parts: &[(BackendAddress, Weight)]| {
            let ring = Ring::of(built.iter().map(|(address, weight)| (address, *weight)));
            ring.is_of(parts.iter().map(|(address, weight)| (address, *weight)))
        };
        assert!(each(&built));
        for other in [
            &[part("web:80", 1)][..],
            &[part("web:80", 1), part("web:81", 2), part("web:82", 1)],
            &[part("web:81", 2), part("web:80", 1)],
            &[part("web:80", 1), part("web:82", 2)],
            &[part("web:80", 1), part("web:81", 3)],
        ] {
            assert!(!each(other), "{other:?}");
        }
    }
}
