//! Sticky sessions: a cookie that returns a client to its backend. The cookie's value is a keyed hash of the backend's
//! name, so it reveals nothing and cannot be forged. All values are computed beforehand, so a request costs one lookup.

use std::collections::HashMap;
use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::balance::{BackendIndex, Member};
use crate::config::backend::BackendAddress;
use crate::config::{PoolName, SameSite, Secret, SecureCookie, StickyConfig};

/// Bytes of the hash in the cookie: 24 characters, too many to guess.
const TOKEN_BYTES: usize = 18;

#[derive(Debug)]
pub struct Sticky {
    config: StickyConfig,
    tokens: Box<[String]>,
    by_token: HashMap<String, BackendIndex>,
}

impl Sticky {
    /// `fallback` is the key if the configuration has no secret.
    pub fn new(config: &StickyConfig, pool: &PoolName, members: &[Member], fallback: &Secret) -> Self {
        let secret = config.secret.as_ref().unwrap_or(fallback);
        let tokens: Box<[String]> = members.iter().map(|m| token(secret, pool, &m.backend.address)).collect();
        let by_token = (0..).zip(tokens.iter()).map(|(index, token)| (token.clone(), index)).collect();
        Self { config: config.clone(), tokens, by_token }
    }

    pub fn config(&self) -> &StickyConfig {
        &self.config
    }

    /// The backend that one of these `Cookie` fields names, if it is one of ours.
    pub fn backend<'a>(&self, cookie_fields: impl Iterator<Item = &'a [u8]>) -> Option<BackendIndex> {
        let named = |field: &'a [u8]| cookie_values(field, self.config.cookie.as_bytes());
        // Another application's cookie may have the same name.
        cookie_fields.flat_map(named).find_map(|value| self.by_token.get(std::str::from_utf8(value).ok()?).copied())
    }

    /// The `Set-Cookie` field that returns the client to this backend.
    pub fn set_cookie(&self, index: BackendIndex, is_https: bool) -> String {
        let Self { config, tokens, .. } = self;
        let token = tokens.get(index as usize).map_or("", String::as_str);
        let mut field = format!(
            "{}={token}; Path={}; HttpOnly; SameSite={}",
            config.cookie,
            config.path,
            same_site(config.same_site)
        );
        if let Some(max_age) = config.max_age {
            // Writing to a string does not fail.
            let _ = write!(field, "; Max-Age={}", max_age.as_secs());
        }
        let is_secure = match config.secure {
            SecureCookie::Always => true,
            SecureCookie::Never => false,
            SecureCookie::Auto => is_https,
        };
        if is_secure {
            field.push_str("; Secure");
        }
        field
    }
}

fn token(secret: &Secret, pool: &PoolName, address: &BackendAddress) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose()).expect("HMAC takes a key of any length");
    mac.update(pool.as_str().as_bytes());
    mac.update(&[0]);
    mac.update(address.as_str().as_bytes());
    URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..TOKEN_BYTES])
}

/// The values of all cookies with this name in a `Cookie` field (RFC 6265 §4.2.1). There are several if their paths or
/// domains differ.
fn cookie_values<'a>(field: &'a [u8], name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
    let pairs = field.split(|&b| b == b';').map(|pair| pair.trim_ascii());
    pairs.filter_map(move |pair| pair.strip_prefix(name)?.strip_prefix(b"="))
}

fn same_site(same_site: SameSite) -> &'static str {
    match same_site {
        SameSite::Lax => "Lax",
        SameSite::Strict => "Strict",
        SameSite::None => "None",
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::backend::Backend;
    use crate::config::backend::Weight;
    use crate::metrics::BackendMetrics;

    fn sticky(secret: &str, addresses: &[&str]) -> Sticky {
        let config = StickyConfig {
            cookie: "ROUTEID".into(),
            path: "/".into(),
            grace: Duration::ZERO,
            max_age: Some(Duration::from_secs(3600)),
            same_site: SameSite::Lax,
            secure: SecureCookie::Auto,
            secret: None,
            secret_file: None,
        };
        let member = |address: &&str| Member {
            backend: Arc::new(Backend::new(
                address.parse().expect("valid"),
                false,
                BackendMetrics::unregistered(),
                Arc::default(),
            )),
            weight: Weight::ONE,
        };
        let members: Vec<_> = addresses.iter().map(member).collect();
        let pool = PoolName::new("app").expect("valid");
        Sticky::new(&config, &pool, &members, &Secret::new(secret).expect("not empty"))
    }

    fn cookie_of(set_cookie: &str) -> &str {
        set_cookie.split(';').next().expect("a pair")
    }

    #[test]
    fn a_cookie_finds_its_backend_whatever_the_order_of_backends() {
        let here = sticky("secret", &["a:1", "b:1", "c:1"]);
        let there = sticky("secret", &["c:1", "a:1", "b:1"]);
        let field = here.set_cookie(1, false);
        let cookie = format!("theme=dark; {}; x=y", cookie_of(&field));
        assert_eq!(here.backend(std::iter::once(cookie.as_bytes())), Some(1));
        assert_eq!(there.backend(std::iter::once(cookie.as_bytes())), Some(2));
    }

    /// A cookie with the same name and a longer path comes first in the field, and hid ours.
    #[test]
    fn a_cookie_of_another_application_does_not_hide_ours() {
        let sticky = sticky("secret", &["a:1", "b:1"]);
        let field = sticky.set_cookie(1, false);
        let cookie = format!("ROUTEID=.node7; {}", cookie_of(&field));
        assert_eq!(sticky.backend(std::iter::once(cookie.as_bytes())), Some(1));
    }

    #[test]
    fn a_forged_or_foreign_cookie_finds_no_backend() {
        let here = sticky("secret", &["a:1", "b:1"]);
        let other = sticky("another", &["a:1", "b:1"]).set_cookie(0, false);
        for cookie in ["ROUTEID=a:1", "ROUTEID=", "ROUTEID", "", "XROUTEID=1", cookie_of(&other), "ROUTEID=\u{ff}"] {
            assert_eq!(here.backend(std::iter::once(cookie.as_bytes())), None, "{cookie}");
        }
    }

    #[test]
    fn the_cookie_hides_the_backend_and_has_safe_attributes() {
        let sticky = sticky("secret", &["web1.internal:8080"]);
        let field = sticky.set_cookie(0, true);
        assert!(!field.contains("web1"), "{field}");
        assert!(field.ends_with("; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure"), "{field}");
        assert!(!sticky.set_cookie(0, false).contains("Secure"));
    }
}
