//! TLS towards clients. All that handshakes need is one immutable value, replaced as a whole when the configuration or
//! the content of files changes. The keys of session tickets outlive it, so that sessions can still be resumed.

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

/// All that a listener's handshakes need.
pub(crate) struct ServerTls {
    pub config: Arc<ServerConfig>,
    pub choice: Arc<Choice>,
    pub handshake_timeout: Duration,
    material: Material,
    /// Of everything that it was built from.
    digest: [u8; 32],
    tickets: Tickets,
    watched: Mutex<Watched>,
}

/// The files that it was read from.
#[derive(Debug, Default)]
struct Watched {
    /// Their stamps from before they were read.
    stamps: Stamps,
    problems: Problems,
}

/// What encrypts session tickets, and for which requirements. A ticket contains the client certificate of its session,
/// so it is accepted only where the same is required of clients.
#[derive(Clone)]
struct Tickets {
    producer: Arc<dyn ProducesTickets>,
    context: [u8; 32],
    /// `None`: keys are random and not shared.
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
    /// Reads the files that `wanted` names. See [`Self::new`]. The error lists all problems.
    pub(crate) fn load(wanted: &TlsConfig, before: Option<&Arc<Self>>) -> Result<Arc<Self>, String> {
        // Before the files are read: changes during the reading are noticed at the next check.
        let stamps = Stamps::of(wanted);
        let in_one = |faults: Vec<TlsFileError>| {
            let messages: Vec<_> = faults.into_iter().map(|fault| fault.message).collect();
            messages.join("; ")
        };
        let tls = Self::new(wanted, Material::load(wanted).map_err(in_one)?, before)?;
        tls.watch(stamps, Problems::new());
        Ok(tls)
    }

    /// Keeps the ticket keys of `before`, if its tickets are still acceptable. Returns `before` itself if nothing has
    /// changed. An error is not caused by files.
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

    /// If the order within a folder determines the default certificate, and it is another one than in `before`: the
    /// previous and the new default.
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

    /// Whether clients must meet the same requirements as those of `other`, so that a client who could connect there
    /// can connect here.
    pub(crate) fn asks_same_of_clients(&self, other: &Self) -> bool {
        self.tickets.context == other.tickets.context
    }

    /// The certificates of `before` whose files are gone.
    pub(crate) fn removed_since<'a>(
        &'a self,
        before: Option<&'a Self>,
    ) -> impl Iterator<Item = &'a Arc<LoadedCertificate>> {
        let is_there = |former: &LoadedCertificate| {
            self.certificates()
                .iter()
                .any(|one| one.pair.certificate == former.pair.certificate || one.digest == former.digest)
        };
        before.into_iter().flat_map(Self::certificates).filter(move |loaded| !is_there(loaded))
    }

    /// Certificates that `before` lacked, or had with other content.
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
    // Our order is used, not the client's: AES-128 with SHA-256 has the cheapest handshake and is strong enough.
    // Clients without it offer others.
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
    // Clients that offer only HTTP/1.0 are served as those without ALPN.
    if wanted.alpn.contains(&Protocol::Http11) {
        server.alpn_protocols.push(b"http/1.0".to_vec());
    }
    // Stateless tickets, which every thread can decrypt. One per connection suffices, and each one costs time.
    server.ticketer = Arc::clone(&tickets.producer);
    server.send_tls13_tickets = 1;
    Ok(server)
}

fn digest(wanted: &TlsConfig, material: &Material) -> [u8; 32] {
    let mut digest = Sha256::new();
    // Every setting contributes.
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

/// Differs when other certificates are required of clients.
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
