//! TLS towards clients. What handshakes are made with is one immutable value, swapped whole when the operator wants
//! something else or files have other content. What tickets are encrypted with outlives it, so that sessions can still
//! be resumed.

pub(crate) mod choice;
mod clients;
pub(crate) mod renewal;
mod tickets;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::crypto::ring::{self, cipher_suite};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoClientAuth, ProducesTickets, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use sha2::{Digest, Sha256};

use self::choice::Choice;
use self::clients::Clients;
use self::renewal::{Problems, Stamps};
use self::tickets::TicketKeys;
use crate::config::Secret;
use crate::config::tls::material::{Issuers, LoadedCertificate, Material, TlsFileError};
use crate::config::tls::{ClientMode, Profile, Protocol, TlsConfig};

/// What a listener's handshakes are made with.
pub(crate) struct ServerTls {
    pub config: Arc<ServerConfig>,
    pub choice: Arc<Choice>,
    pub handshake_timeout: Duration,
    material: Material,
    /// Of all that it was made of.
    digest: [u8; 32],
    tickets: Tickets,
    watched: Mutex<Watched>,
}

/// What is known of its files.
#[derive(Debug, Default)]
struct Watched {
    /// As they were before they were read.
    stamps: Stamps,
    problems: Problems,
}

/// What encrypts tickets, and for which clients: a ticket says which certificate its client has shown, so that it may be
/// taken only where the same is asked of clients.
#[derive(Clone)]
struct Tickets {
    producer: Arc<dyn ProducesTickets>,
    context: [u8; 32],
    /// `None`: keys are random, and nobody else's.
    secrets: Option<Arc<[Secret]>>,
}

impl Tickets {
    fn new(context: [u8; 32], secrets: Option<Arc<[Secret]>>) -> Self {
        Self { producer: Arc::new(TicketKeys::new(secrets.clone(), context)), context, secrets }
    }

    fn is_of(&self, context: [u8; 32], secrets: Option<&Arc<[Secret]>>) -> bool {
        self.context == context && self.secrets.as_ref() == secrets
    }
}

impl ServerTls {
    /// Reads the files that `wanted` names. As [`Self::new`]; the error: all that is wrong.
    pub(crate) fn load(wanted: &TlsConfig, before: Option<&Arc<Self>>) -> Result<Arc<Self>, String> {
        // Before they are read: what changes meanwhile is seen later.
        let stamps = Stamps::of(wanted);
        let in_one = |faults: Vec<TlsFileError>| {
            let messages: Vec<_> = faults.into_iter().map(|fault| fault.message).collect();
            messages.join("; ")
        };
        let tls = Self::new(wanted, Material::load(wanted).map_err(in_one)?, before)?;
        tls.watch(stamps, Problems::new());
        Ok(tls)
    }

    /// With what encrypted the tickets of `before`, if they may still be taken. Nothing new where nothing is other than
    /// `before`. The error is no file's fault.
    pub(crate) fn new(wanted: &TlsConfig, material: Material, before: Option<&Arc<Self>>) -> Result<Arc<Self>, String> {
        let digest = digest(wanted, &material);
        if let Some(before) = before.filter(|before| before.digest == digest) {
            return Ok(Arc::clone(before));
        }
        let context = context(wanted, material.issuers.as_deref());
        let secrets = material.ticket_secrets.as_ref();
        let tickets = match before.map(|before| &before.tickets).filter(|tickets| tickets.is_of(context, secrets)) {
            Some(tickets) => tickets.clone(),
            None => Tickets::new(context, secrets.cloned()),
        };
        let choice = Arc::new(Choice::new(wanted, &material.certificates));
        let config = server_config(wanted, &material, &choice, &tickets)?;
        let handshake_timeout = wanted.handshake_timeout;
        let (config, watched) = (Arc::new(config), Mutex::default());
        Ok(Arc::new(Self { config, choice, handshake_timeout, material, digest, tickets, watched }))
    }

    pub(crate) fn certificates(&self) -> &[Arc<LoadedCertificate>] {
        &self.material.certificates
    }

    /// Where the place in a folder decides which certificate is the default, and decides otherwise than `before`: the one that
    /// was it, and the one that is.
    pub(crate) fn moved_default<'a>(
        &'a self,
        wanted: &TlsConfig,
        before: &'a Self,
    ) -> Option<(&'a LoadedCertificate, &'a LoadedCertificate)> {
        if wanted.default.is_some() || wanted.certificates.folder().is_none() {
            return None;
        }
        let (was, is) = (before.certificates().first()?, self.certificates().first()?);
        (was.pair.certificate != is.pair.certificate).then_some((&**was, &**is))
    }

    /// Whether the same is demanded of clients as by `other`, so that who could connect there can connect here.
    pub(crate) fn asks_same_of_clients(&self, other: &Self) -> bool {
        self.tickets.context == other.tickets.context
    }

    /// Those of `before` whose files it has no certificate of any more.
    pub(crate) fn gone_since<'a>(&'a self, before: Option<&'a Self>) -> impl Iterator<Item = &'a Arc<LoadedCertificate>> {
        let is_there = |former: &LoadedCertificate| {
            self.certificates()
                .iter()
                .any(|one| one.pair.certificate == former.pair.certificate || one.digest == former.digest)
        };
        before.into_iter().flat_map(Self::certificates).filter(move |loaded| !is_there(loaded))
    }

    /// Those of its certificates that `before` had not, or had with other content.
    pub(crate) fn new_since<'a>(
        &'a self,
        before: Option<&'a Self>,
    ) -> impl Iterator<Item = &'a Arc<LoadedCertificate>> {
        let is_known = move |loaded: &LoadedCertificate| {
            before.is_some_and(|before| before.certificates().iter().any(|one| one.digest == loaded.digest))
        };
        self.certificates().iter().filter(move |loaded| !is_known(loaded))
    }
}

fn server_config(
    wanted: &TlsConfig,
    material: &Material,
    choice: &Arc<Choice>,
    tickets: &Tickets,
) -> Result<ServerConfig, String> {
    let mut provider = ring::default_provider();
    // The order counts, whatever the client's: AES-128 with SHA-256 costs a handshake least and is strong enough for
    // anybody; clients that cannot use it name another.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != cipher_suite::TLS13_AES_128_GCM_SHA256.suite());
    let provider = Arc::new(provider);
    let versions: &[&SupportedProtocolVersion] = match wanted.profile {
        Profile::Intermediate => &[&TLS13, &TLS12],
        Profile::Modern => &[&TLS13],
    };
    let verifier: Arc<dyn ClientCertVerifier> = match (&wanted.client_certificates, &material.issuers) {
        (Some(clients), Some(issuers)) => {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(&issuers.roots), Arc::clone(&provider));
            let builder = match clients.mode {
                ClientMode::Optional => builder.allow_unauthenticated(),
                ClientMode::Required => builder,
            };
            Arc::new(Clients(builder.build().map_err(|e| e.to_string())?))
        }
        _ => Arc::new(NoClientAuth),
    };
    let builder = ServerConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).map_err(|e| e.to_string())?;
    let mut server = builder.with_client_cert_verifier(verifier).with_cert_resolver(Arc::clone(choice) as _);
    server.ignore_client_order = true;
    server.alpn_protocols = wanted.alpn.iter().map(|protocol| protocol.name().to_vec()).collect();
    // Clients that offer this alone are served as those that offer nothing.
    if wanted.alpn.contains(&Protocol::Http11) {
        server.alpn_protocols.push(b"http/1.0".to_vec());
    }
    // Tickets that every thread can read; one is enough to resume with, and each costs.
    server.ticketer = Arc::clone(&tickets.producer);
    server.send_tls13_tickets = 1;
    Ok(server)
}

fn digest(wanted: &TlsConfig, material: &Material) -> [u8; 32] {
    let mut digest = Sha256::new();
    // Every setting has a part in it.
    digest.update(format!("{wanted:?}"));
    material.certificates.iter().for_each(|loaded| digest.update(loaded.digest));
    digest.update(material.issuers.as_ref().map_or([0; 32], |issuers| issuers.digest));
    material
        .ticket_secrets
        .iter()
        .flat_map(|secrets| secrets.iter())
        .for_each(|secret| digest.update(Sha256::digest(secret.expose())));
    digest.finalize().into()
}

/// Other for clients of whom other certificates are asked.
fn context(wanted: &TlsConfig, issuers: Option<&Issuers>) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(format!("{:?}", wanted.client_certificates.as_ref().map(|clients| clients.mode)));
    digest.update(issuers.map_or([0; 32], |issuers| issuers.digest));
    digest.finalize().into()
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").field("choice", &self.choice).finish_non_exhaustive()
    }
}
