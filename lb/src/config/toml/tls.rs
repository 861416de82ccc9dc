//! Reads TLS settings of listeners and sites, and the files that they name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use super::reader::{Reader, Section};
use super::values::{self, DAY, MILLISECOND};
use super::{collect, element_offset};
use crate::config::site::{ListenerName, SiteConfig};
use crate::config::tls::material::{Material, TlsFileError, TlsFileSetting};
use crate::config::tls::{
    AdditionalCertificates, Certificates, ClientCertificates, ClientMode, Pair, Profile, Protocol, TlsConfig,
    UnknownNames,
};
use crate::config::{HostRoute, ListenerConfig};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const WATCH_INTERVAL: Duration = Duration::from_secs(5);

impl<'t> Reader<'t> {
    pub(super) fn tls(&mut self, section: &Section<'t>) -> Option<TlsConfig> {
        const NAMES: &[(&str, UnknownNames)] = &[("default", UnknownNames::Default), ("refuse", UnknownNames::Refuse)];
        const PROFILES: &[(&str, Profile)] = &[("intermediate", Profile::Intermediate), ("modern", Profile::Modern)];
        const PROTOCOLS: &[(&str, Protocol)] = &[("h2", Protocol::Http2), ("http/1.1", Protocol::Http11)];
        let base = self.base(section);
        let file = |value: &DeValue<'t>| values::path(base, value)?.ok_or_else(|| "the path of a file".to_owned());
        let certificates = self.certificates(section);
        let default = self.optional(section, "default", file);
        let unknown_names = self.optional(section, "unknown_names", values::choice(NAMES));
        let profile = self.optional(section, "profile", values::choice(PROFILES));
        let alpn = match section.has("alpn") {
            true => self.each(section, "alpn", values::choice(PROTOCOLS)),
            false => Some(vec![Protocol::Http2, Protocol::Http11]),
        };
        if alpn.as_ref().is_some_and(Vec::is_empty) {
            let message = "listener.tls.alpn is empty: write [\"http/1.1\"] to offer no HTTP/2";
            self.problem(section.offset("alpn"), message);
        }
        let client_certificates = self.client_certificates(section);
        let ticket_file = self.optional(section, "ticket_file", file);
        let handshake_timeout = self.optional(section, "handshake_timeout", values::duration(MILLISECOND, DAY));
        let watch_interval = self.optional(section, "watch_interval", values::duration(Duration::ZERO, DAY));
        let tls = TlsConfig {
            certificates: certificates?,
            default: default?,
            unknown_names: unknown_names?.unwrap_or(UnknownNames::Default),
            profile: profile?.unwrap_or(Profile::Intermediate),
            alpn: alpn?,
            client_certificates: client_certificates?,
            ticket_file: ticket_file?,
            handshake_timeout: handshake_timeout?.unwrap_or(HANDSHAKE_TIMEOUT),
            watch_interval: watch_interval?.unwrap_or(WATCH_INTERVAL),
            pins: Vec::new(),
            hosts: Vec::new(),
        };
        let Err(faults) = Material::load(&tls) else { return Some(tls) };
        for fault in faults {
            self.fault(section, fault);
        }
        None
    }

    /// Reports a problem with a file at the setting that names it.
    fn fault(&mut self, section: &Section<'t>, TlsFileError { at, message }: TlsFileError) {
        // `certificate` comes before `certificates`.
        let element = |index: usize| match (index, section.has("certificate")) {
            (0, true) => None,
            (index, has_one) => Some(index - usize::from(has_one)),
        };
        let (key, index) = match at {
            TlsFileSetting::Certificate(index) if element(index).is_none() => ("certificate", None),
            TlsFileSetting::Password(index) if element(index).is_none() && section.has("password_file") => {
                ("password_file", None)
            }
            TlsFileSetting::Key(index) | TlsFileSetting::Password(index) if element(index).is_none() => ("key", None),
            TlsFileSetting::Certificate(index) | TlsFileSetting::Key(index) | TlsFileSetting::Password(index) => {
                ("certificates", element(index))
            }
            TlsFileSetting::Certificates => ("certificates", None),
            TlsFileSetting::Default => ("default", None),
            TlsFileSetting::Issuers => ("client_certificates", None),
            TlsFileSetting::Tickets => ("ticket_file", None),
        };
        let offset = index.and_then(|index| element_offset(section, key, index)).unwrap_or(section.offset(key));
        self.problem(offset, format!("listener.tls.{key}: {message}"));
    }

    fn certificates(&mut self, section: &Section<'t>) -> Option<Certificates> {
        let has_one = ["certificate", "key", "password_file"].into_iter().any(|key| section.has(key));
        if !has_one && !section.has("certificates") {
            let message = "listener.tls has no certificate: write certificate = \"tls/cert.pem\" and key = \"tls/key.pem\", or certificates with several or with a folder";
            self.absent(Some(section.own_offset()), message);
            return None;
        }
        let one = if has_one { self.pair(section).map(Some) } else { Some(None) };
        let others = if section.has("certificates") { self.others(section).map(Some) } else { Some(None) };
        Some(Certificates { one: one?, others: others? })
    }

    fn others(&mut self, section: &Section<'t>) -> Option<AdditionalCertificates> {
        let base = self.base(section);
        if section.is_text("certificates") {
            let folder =
                |value: &DeValue<'t>| values::path(base, value)?.ok_or_else(|| "the path of a folder".to_owned());
            return self.value(section, "certificates", folder).map(AdditionalCertificates::Folder);
        }
        let mut pairs = Some(Vec::new());
        for element in self.elements(section, "certificates")? {
            let pair = match element.get_ref() {
                DeValue::Table(_) => {
                    let inner = self.element(section, "certificates", element);
                    self.pair(&inner)
                }
                _ => self.read_at(section, "certificates", element, |value| {
                    let path = values::path(base, value)?.ok_or("the path of a PEM file")?;
                    Ok(Pair::beside(path))
                }),
            };
            collect(&mut pairs, pair);
        }
        pairs.map(AdditionalCertificates::Listed)
    }

    fn pair(&mut self, section: &Section<'t>) -> Option<Pair> {
        let base = self.base(section);
        let file = |value: &DeValue<'t>| values::path(base, value)?.ok_or_else(|| "the path of a PEM file".to_owned());
        let certificate = self.required(section, "certificate", file);
        let key = self.required(section, "key", file);
        let password_file = self.optional(section, "password_file", file);
        Some(Pair { certificate: certificate?, key: key?, password_file: password_file? })
    }

    fn client_certificates(&mut self, section: &Section<'t>) -> Option<Option<ClientCertificates>> {
        const MODES: &[(&str, Option<ClientMode>)] =
            &[("off", None), ("optional", Some(ClientMode::Optional)), ("required", Some(ClientMode::Required))];
        let clients = self.section(section, "client_certificates");
        if !clients.is_written() {
            return Some(None);
        }
        let base = self.base(section);
        let mode = self.required(&clients, "mode", values::choice(MODES));
        let file = |value: &DeValue<'t>| values::path(base, value)?.ok_or_else(|| "the path of a PEM file".to_owned());
        if mode == Some(None) {
            return self.optional(&clients, "ca", file).map(|_| None);
        }
        let ca = self.required(&clients, "ca", file);
        Some(Some(ClientCertificates { mode: mode??, ca: ca? }))
    }
}

/// What sites can refer to in a listener. If the listener has problems, they are reported there, and not for sites as
/// well.
pub(super) struct Named {
    /// `None`: unknown, so every name matches.
    pub name: Option<ListenerName>,
    pub certificates: Pinnable,
}

/// The certificates of a listener that sites may pin, by path.
pub(super) enum Pinnable {
    /// The listener has no TLS.
    Plain,
    Of(Vec<PathBuf>),
    /// Unknown, so every path matches.
    Unknown,
}

impl Pinnable {
    /// From the TLS settings as read; `None`: they have a problem.
    pub(super) fn of(tls: Option<Option<&TlsConfig>>) -> Self {
        let path = |pair: Pair| pair.certificate;
        match tls {
            None => Self::Unknown,
            Some(None) => Self::Plain,
            Some(Some(tls)) => Self::Of(tls.certificates.pairs().unwrap_or_default().into_iter().map(path).collect()),
        }
    }
}

impl Named {
    pub(super) fn may_be(&self, name: &ListenerName) -> bool {
        self.name.as_ref().is_none_or(|own| own == name)
    }
}

/// Why a site of these listeners cannot pin a certificate, if it cannot.
pub(super) fn not_pinnable(known: &[Named], listeners: &[ListenerName], certificate: &Path) -> Option<String> {
    let is_here = |one: &&Named| listeners.is_empty() || listeners.iter().any(|name| one.may_be(name));
    let here: Vec<_> = known.iter().filter(is_here).map(|one| &one.certificates).collect();
    // A missing listener is reported separately.
    if here.is_empty() || here.iter().any(|certificates| matches!(certificates, Pinnable::Unknown)) {
        return None;
    }
    let paths =
        |certificates: &&'_ Pinnable| if let Pinnable::Of(paths) = certificates { paths.clone() } else { vec![] };
    let there: Vec<PathBuf> = here.iter().flat_map(paths).collect();
    if there.is_empty() {
        return Some("none of its listeners has TLS".to_owned());
    }
    if there.iter().any(|one| one == certificate) {
        return None;
    }
    let there: Vec<_> = there.into_iter().map(|path| path.display().to_string()).collect();
    Some(format!("its listeners have {}", there.join(", ")))
}

/// Stores in each listener its hosts and the certificates that its sites pin.
pub(super) fn pin(listeners: &mut [ListenerConfig], named: &[Named], routes: &[HostRoute], sites: &[SiteConfig]) {
    for (listener, Named { certificates, .. }) in listeners.iter_mut().zip(named) {
        let (Some(tls), Pinnable::Of(certificates), name) = (&mut listener.tls, certificates, &listener.name) else {
            continue;
        };
        let pinned = |site: &SiteConfig| site.certificate.clone().filter(|path| certificates.contains(path));
        let here = || sites.iter().filter(|site| site.listeners.is_empty() || site.listeners.contains(name));
        let of_routes = routes.iter().map(|route| &route.host);
        tls.hosts = here().flat_map(|site| &site.hosts).chain(of_routes).cloned().collect();
        if here().any(|site| pinned(site).is_some()) {
            let of_sites = here().flat_map(|site| site.hosts.iter().map(move |host| (host.clone(), pinned(site))));
            tls.pins = of_sites.chain(routes.iter().map(|route| (route.host.clone(), None))).collect();
        }
    }
}
