//! Chooses a client's certificate: by the server name that it requests (RFC 6066 §3), then by the signature schemes
//! that it supports.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use foldhash::fast::RandomState;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::config::tls::material::LoadedCertificate;
use crate::config::tls::{TlsConfig, UnknownNames};
use crate::site::hosts::HostTable;

/// Finds a certificate by server name, ignoring case and a final dot.
#[derive(Debug)]
pub(crate) struct Choice {
    exact: Names,
    /// By the domain without `*.`; a wildcard stands for one label (RFC 9525 §6.3).
    wildcard: Names,
    /// Certificates pinned by sites, which take precedence.
    pinned: Option<HostTable<Option<Group>>>,
    default: Group,
    refuses_unknown: bool,
}

type Names = HashMap<Box<str>, Group, RandomState>;

/// Certificates for the same name, for clients with different signature schemes. At least one.
#[derive(Debug, Clone)]
struct Group(Arc<[Arc<CertifiedKey>]>);

/// No certificate matches the name, and such names are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UnknownName;

impl Choice {
    /// From at least one certificate. The default and pinned ones are among them; if not, the first one is used
    /// instead.
    pub(crate) fn new(config: &TlsConfig, certificates: &[Arc<LoadedCertificate>]) -> Self {
        let mut names: HashMap<String, Vec<&Arc<LoadedCertificate>>> = HashMap::new();
        for loaded in certificates {
            for name in &loaded.leaf.names {
                let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
                names.entry(name).or_default().push(loaded);
            }
        }
        let (mut exact, mut wildcard) = (Names::default(), Names::default());
        for (name, of) in &names {
            match name.strip_prefix("*.") {
                Some(domain) => wildcard.insert(domain.into(), Group::of(of)),
                None => exact.insert(name.as_str().into(), Group::of(of)),
            };
        }
        // Includes certificates with other key types for the same name.
        let group = |path: &Path| {
            let first = certificates.iter().find(|loaded| loaded.pair.certificate == path)?;
            let name = first.leaf.names.first().map(|name| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase());
            let others = name.and_then(|name| names.get(&name)).into_iter().flatten();
            let others = others.filter(|other| other.certified.key.algorithm() != first.certified.key.algorithm());
            Some(Group::of_in_order([first].into_iter().chain(others.copied())))
        };
        let default = config.default.as_deref().and_then(group);
        let default = default.or_else(|| group(&certificates.first()?.pair.certificate));
        let pinned = (!config.pins.is_empty()).then(|| {
            let pins = config.pins.iter();
            HostTable::new(pins.map(|(host, certificate)| (host.clone(), certificate.as_deref().and_then(group))))
        });
        Self {
            exact,
            wildcard,
            pinned,
            default: default.unwrap_or_else(|| Group(Arc::new([]))),
            refuses_unknown: config.unknown_names == UnknownNames::Refuse,
        }
    }

    /// Whether the name that a client requests, if any, is served.
    pub(crate) fn admits(&self, name: Option<&str>) -> Result<(), UnknownName> {
        match name {
            Some(name) if self.refuses_unknown && self.find(name).is_none() => Err(UnknownName),
            _ => Ok(()),
        }
    }

    fn find(&self, name: &str) -> Option<&Group> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if let Some(Some(group)) = self.pinned.as_ref().and_then(|pinned| pinned.find(name)) {
            return Some(group);
        }
        let lower;
        let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => {
                lower = name.to_ascii_lowercase();
                &lower
            }
            false => name,
        };
        let below = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(below)
    }

    fn certificate(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        name.and_then(|name| self.find(name)).unwrap_or(&self.default).choose(schemes)
    }
}

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate(hello.server_name(), hello.signature_schemes())
    }
}

impl Group {
    /// Orders certificates by the cost of a handshake; among equals, a valid one comes first, then the one that is
    /// valid longest.
    fn of(certificates: &[&Arc<LoadedCertificate>]) -> Self {
        let mut certificates = certificates.to_vec();
        let cost = |loaded: &LoadedCertificate| match loaded.certified.key.algorithm() {
            SignatureAlgorithm::ECDSA => 0,
            SignatureAlgorithm::ED25519 => 1,
            _ => 2,
        };
        certificates.sort_by_key(|loaded| (cost(loaded), !loaded.is_valid(), std::cmp::Reverse(loaded.not_after())));
        Self::of_in_order(certificates)
    }

    fn of_in_order<'a>(certificates: impl IntoIterator<Item = &'a Arc<LoadedCertificate>>) -> Self {
        Self(certificates.into_iter().map(|loaded| Arc::clone(&loaded.certified)).collect())
    }

    /// The first one that the client can verify. If there is none, the first one: the handshake then fails with the
    /// right alert.
    fn choose(&self, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let fits = |certified: &&Arc<CertifiedKey>| certified.key.choose_scheme(schemes).is_some();
        self.0.iter().find(fits).or(self.0.first()).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests;
