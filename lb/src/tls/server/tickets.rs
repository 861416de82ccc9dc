//! Session tickets, by which clients resume sessions (RFC 5077, RFC 8446 §4.6.1). They are encrypted with the key of
//! the current hour and accepted for twelve hours after that, also if nobody connects in between. Keys are random, or
//! derived from secrets in a file. Balancers that share the file accept each other's tickets, also after a restart.
//!
//! A random key is dropped after these hours, so that nobody can decrypt its tickets later. A derived key (HKDF, RFC
//! 5869) comes from a secret, the hour, and what is required of clients, so that holders of the same secret have the
//! same keys without exchanging any. New tickets are encrypted with the first secret's key of this hour. Keys of all
//! secrets are accepted for the last twelve hours, and for the next one, since clocks differ. Somebody who learns a
//! secret can decrypt all tickets ever made with it, and with TLS 1.2 the sessions, too: replace the file from time to
//! time.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;

use crate::clock;
use crate::config::Secret;

/// How long a key encrypts.
const ROTATION_SECONDS: u64 = 60 * 60;
/// For how many rotations it decrypts after that.
const RETAINED_ROTATIONS: u64 = 12;
const LIFETIME_SECONDS: u32 = (RETAINED_ROTATIONS * ROTATION_SECONDS) as u32;
const NAME_BYTES: usize = 16;
/// Longer tickets are not ours, whatever certificate chain a client has sent.
const MAX_TICKET_BYTES: usize = 64 * 1024;
const SALT: &[u8] = b"evenkeel session tickets 1";

/// Ticket keys for one context: what is required of clients. Tickets of other contexts cannot be decrypted.
pub(super) struct TicketKeys {
    /// `None`: keys are random.
    secrets: Option<Arc<[Secret]>>,
    context: [u8; 32],
    keys: ArcSwap<Keys>,
}

/// The keys of the last hours.
struct Keys {
    /// Hours since 1970.
    epoch: u64,
    /// The first one encrypts.
    keys: Vec<Arc<Key>>,
}

struct Key {
    /// The hour in which it encrypts.
    epoch: u64,
    /// The key name in each ticket.
    name: [u8; NAME_BYTES],
    key: LessSafeKey,
}

impl TicketKeys {
    /// `secrets`: at least one; `None`: keys are random.
    pub(super) fn new(secrets: Option<Arc<[Secret]>>, context: [u8; 32]) -> Self {
        let keys = ArcSwap::from_pointee(Keys { epoch: u64::MAX, keys: Vec::new() });
        Self { secrets, context, keys }
    }

    fn keys(&self, now: u64) -> Arc<Keys> {
        let epoch = now / ROTATION_SECONDS;
        let keys = self.keys.load_full();
        if keys.epoch == epoch {
            return keys;
        }
        // Threads that derive keys from secrets at the same time get the same keys. Of random keys, the first ones are
        // kept.
        self.keys.rcu(|keys| match keys.epoch == epoch {
            true => Arc::clone(keys),
            false => Arc::new(Keys { epoch, keys: self.keys_of(epoch, keys) }),
        });
        self.keys.load_full()
    }

    fn keys_of(&self, epoch: u64, before: &Keys) -> Vec<Arc<Key>> {
        let Some(secrets) = &self.secrets else {
            let kept = before.keys.iter().filter(|key| key.epoch.abs_diff(epoch) <= RETAINED_ROTATIONS).map(Arc::clone);
            return Key::random(epoch)
                .map(Arc::new)
                .into_iter()
                .chain(kept)
                .take(2 * RETAINED_ROTATIONS as usize)
                .collect();
        };
        // First the current hour's key of the first secret.
        let epochs = || {
            [epoch, epoch.saturating_add(1)]
                .into_iter()
                .chain((1..=RETAINED_ROTATIONS).map(|ago| epoch.saturating_sub(ago)))
        };
        let of = |secret: &Secret| {
            let prk = Salt::new(HKDF_SHA256, SALT).extract(secret.expose());
            epochs().map(move |epoch| Arc::new(Key::derive(&prk, &self.context, epoch))).collect::<Vec<_>>()
        };
        secrets.iter().flat_map(of).collect()
    }

    fn encrypt_at(&self, now: u64, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys(now);
        let Key { epoch, name, key } = &**keys.keys.first()?;
        // No random key could be generated.
        if *epoch != keys.epoch {
            return None;
        }
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), &mut sealed).ok()?;
        Some([&name[..], &nonce, &sealed].concat())
    }

    fn decrypt_at(&self, now: u64, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET_BYTES {
            return None;
        }
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys(now);
        // Key names are not secret: each ticket contains one.
        let Key { key, .. } = &**keys.keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = sealed.to_vec();
        let length = key.open_in_place(nonce, Aad::from(name), &mut plain).ok()?.len();
        plain.truncate(length);
        Some(plain)
    }
}

impl Key {
    fn derive(prk: &Prk, context: &[u8; 32], epoch: u64) -> Self {
        let bytes = epoch.to_be_bytes();
        let (mut key, mut name) = ([0; 32], [0; NAME_BYTES]);
        expand(prk, &[b"key", context, &bytes], &mut key);
        expand(prk, &[b"name", context, &bytes], &mut name);
        Self::new(epoch, name, &key)
    }

    /// `None`: the system provides no random bytes.
    fn random(epoch: u64) -> Option<Self> {
        let (mut key, mut name) = ([0; 32], [0; NAME_BYTES]);
        let random = SystemRandom::new();
        random.fill(&mut key).and_then(|()| random.fill(&mut name)).ok()?;
        Some(Self::new(epoch, name, &key))
    }

    fn new(epoch: u64, name: [u8; NAME_BYTES], key: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the length that the algorithm wants");
        Self { epoch, name, key: LessSafeKey::new(key) }
    }
}

fn expand(prk: &Prk, info: &[&[u8]], out: &mut [u8]) {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let expanded = prk.expand(info, Length(out.len())).and_then(|okm| okm.fill(out));
    expanded.expect("HKDF gives up to 255 times the length of a hash, which is 32");
}

fn now() -> u64 {
    clock::wall().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.encrypt_at(now(), plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.decrypt_at(now(), ticket)
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = ROTATION_SECONDS;
    const TAG_BYTES: usize = 16;
    const NOW: u64 = 1_800_000_000;
    const CONTEXT: [u8; 32] = [7; 32];

    fn tickets(secrets: &[&str], context: [u8; 32]) -> TicketKeys {
        let secrets = secrets.iter().map(|secret| Secret::new(secret.as_bytes()).expect("a secret"));
        TicketKeys::new(Some(secrets.collect()), context)
    }

    const A: &str = "0123456789abcdef0123456789abcdef";
    const B: &str = "fedcba9876543210fedcba9876543210";

    #[test]
    fn a_shared_secret_decrypts_tickets_for_twelve_hours() {
        let (one, other) = (tickets(&[A], CONTEXT), tickets(&[A], CONTEXT));
        let ticket = one.encrypt_at(NOW, b"session").expect("a ticket");
        for (at, is_read) in [
            (NOW, true),
            // A clock that is behind, and one that is ahead.
            (NOW - HOUR, true),
            (NOW - 2 * HOUR, false),
            (NOW + 12 * HOUR, true),
            (NOW + 13 * HOUR, false),
        ] {
            let read = other.decrypt_at(at, &ticket);
            assert_eq!(read.as_deref(), is_read.then_some(&b"session"[..]), "{at}");
        }
        assert_eq!(one.decrypt_at(NOW, &ticket).as_deref(), Some(&b"session"[..]), "hours may come in any order");
    }

    #[test]
    fn random_keys_are_private_and_dropped_after_twelve_hours() {
        let (one, other) = (TicketKeys::new(None, CONTEXT), TicketKeys::new(None, CONTEXT));
        let ticket = one.encrypt_at(NOW, b"session").expect("a ticket");
        let later = one.encrypt_at(NOW + HOUR, b"session").expect("a ticket");
        assert_ne!(ticket[..NAME_BYTES], later[..NAME_BYTES]);
        assert_eq!(other.decrypt_at(NOW, &ticket), None);
        assert_eq!(one.decrypt_at(NOW + 12 * HOUR, &ticket).as_deref(), Some(&b"session"[..]));
        // Nobody has connected for that long.
        assert_eq!(one.decrypt_at(NOW + 13 * HOUR, &ticket), None);
        assert_eq!(one.decrypt_at(NOW, &ticket), None, "the key is gone");
    }

    #[test]
    fn the_first_secret_encrypts_and_all_decrypt() {
        let (old, both, new) = (tickets(&[A], CONTEXT), tickets(&[B, A], CONTEXT), tickets(&[B], CONTEXT));
        let from_old = old.encrypt_at(NOW, b"x").expect("a ticket");
        let from_both = both.encrypt_at(NOW, b"y").expect("a ticket");
        assert_eq!(both.decrypt_at(NOW, &from_old).as_deref(), Some(&b"x"[..]));
        assert_eq!(new.decrypt_at(NOW, &from_both).as_deref(), Some(&b"y"[..]));
        assert_eq!(new.decrypt_at(NOW, &from_old), None);
        assert_eq!(old.decrypt_at(NOW, &from_both), None);
    }

    #[test]
    fn a_ticket_is_valid_only_under_the_same_client_requirements() {
        let ticket = tickets(&[A], CONTEXT).encrypt_at(NOW, b"x").expect("a ticket");
        assert_eq!(tickets(&[A], [8; 32]).decrypt_at(NOW, &ticket), None);
    }

    #[test]
    fn keys_change_by_the_hour_and_tickets_never_repeat() {
        let tickets = tickets(&[A], CONTEXT);
        let at = |now| tickets.encrypt_at(now, b"x").expect("a ticket");
        let (one, again, later) = (at(NOW), at(NOW), at(NOW + HOUR));
        assert_eq!(one[..NAME_BYTES], again[..NAME_BYTES]);
        assert_ne!(one, again);
        assert_ne!(one[..NAME_BYTES], later[..NAME_BYTES]);
        assert_eq!(one.len(), NAME_BYTES + NONCE_LEN + 1 + TAG_BYTES);
    }

    #[test]
    fn altered_or_malformed_tickets_are_rejected() {
        let tickets = tickets(&[A], CONTEXT);
        let ticket = tickets.encrypt_at(NOW, b"session").expect("a ticket");
        for index in 0..ticket.len() {
            let mut altered = ticket.clone();
            altered[index] ^= 1;
            assert_eq!(tickets.decrypt_at(NOW, &altered), None, "{index}");
            assert_eq!(tickets.decrypt_at(NOW, &ticket[..index]), None, "{index}");
        }
        assert_eq!(tickets.decrypt_at(NOW, &vec![0; MAX_TICKET_BYTES + 1]), None);
    }

    /// Another version of Evenkeel must derive the same keys. The name was computed by another implementation of HKDF.
    #[test]
    fn key_derivation_is_stable() {
        let tickets = tickets(&[A], [0; 32]);
        let name = tickets.keys(NOW).keys[0].name;
        let hex: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "866b1dbb5611c72d648209ae1e32caf4");
    }
}
