//! `[[pool]]`: its backends, and how they are connected to, probed, ejected and chosen.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use ::toml::Spanned;
use ::toml::de::DeValue;

use super::reader::{Reader, Section};
use super::values::{self, DAY, MILLISECOND};
use super::{MAX_FIELDS, MAX_HEAD_BYTES, MIN_HEAD_BYTES, collect, files};
use crate::config::backend::AdminState;
use crate::config::transport::{BackendTls, ProxyProtocol, TransportConfig, Trust};
use crate::config::{
    Addresses, BackendConfig, EjectionConfig, PoolConfig, PoolName, PoolSettings, ProbeConfig, ProbeKind, SameSite,
    SecureCookie, StickyConfig,
};

impl<'t> Reader<'t> {
    /// The pools, and all names that occur, also of pools with problems.
    pub(super) fn pools(&mut self, roots: &[Section<'t>]) -> (Option<Vec<PoolConfig>>, Vec<PoolName>) {
        // Sites can do without pools.
        let sections = match roots.iter().any(|root| root.has("site")) {
            true => roots.iter().flat_map(|root| self.tables(root, "pool")).collect(),
            false => self.list(roots, "pool", "add one with a name and its backends"),
        };
        let mut names = Vec::new();
        let mut pools = Some(Vec::new());
        for section in &sections {
            let name = self.required(section, "name", values::pool_name);
            if let Some(name) = &name {
                if names.contains(name) {
                    let message = format!("pool.name is \"{name}\", which another [[pool]] has: write another name");
                    self.problem(section.offset("name"), message);
                } else {
                    names.push(name.clone());
                }
            }
            let algorithm = self.value(section, "algorithm", values::algorithm);
            let backends = self.backends(section);
            let settings = self.pool_settings(section);
            let pool =
                || Some(PoolConfig { name: name?, algorithm: algorithm?, backends: backends?, settings: settings? });
            collect(&mut pools, pool());
        }
        (pools, names)
    }

    fn pool_settings(&mut self, section: &Section<'t>) -> Option<PoolSettings> {
        let connect_timeout = self.value(section, "connect_timeout", values::duration(MILLISECOND, DAY));
        let response_timeout = self.value(section, "response_timeout", values::duration(MILLISECOND, DAY));
        let read_timeout = self.value(section, "read_timeout", values::duration(MILLISECOND, DAY));
        let write_timeout = self.value(section, "write_timeout", values::duration(MILLISECOND, DAY));
        let tunnel_timeout = self.value(section, "tunnel_timeout", values::duration(MILLISECOND, DAY));
        let idle_timeout = self.value(section, "idle_timeout", values::duration(MILLISECOND, DAY));
        let retries = self.value(section, "retries", values::whole(0, 16));
        let continue_timeout = self.value(section, "continue_timeout", values::duration(MILLISECOND, DAY));
        let retry_timeout = self.value(section, "retry_timeout", values::duration(Duration::ZERO, DAY));
        let retry_body_bytes = self.value(section, "retry_body_bytes", values::size(0, 65536));
        let max_head_bytes = self.value(section, "max_head_bytes", values::size(MIN_HEAD_BYTES, MAX_HEAD_BYTES));
        let max_fields = self.value(section, "max_fields", values::whole(1, MAX_FIELDS));
        let panic_threshold = self.value(section, "panic_threshold", values::whole(0, 100));
        let words = [("share", Addresses::Share), ("each", Addresses::Each)];
        let addresses = self.value(section, "addresses", values::choice(&words));
        let queue_timeout = self.value(section, "queue_timeout", values::duration(Duration::ZERO, DAY));
        let transport = self.transport(section);
        let probe = self.section(section, "probe");
        let probe = if probe.is_written() { self.probe(&probe).map(Some) } else { Some(None) };
        let ejection = self.section(section, "ejection");
        let ejection = self.ejection(&ejection);
        let sticky = self.section(section, "sticky");
        let sticky = if sticky.is_written() { self.sticky(&sticky).map(Some) } else { Some(None) };
        Some(PoolSettings {
            connect_timeout: connect_timeout?,
            response_timeout: response_timeout?,
            read_timeout: read_timeout?,
            write_timeout: write_timeout?,
            tunnel_timeout: tunnel_timeout?,
            idle_timeout: idle_timeout?,
            continue_timeout: continue_timeout?,
            retries: retries?,
            retry_timeout: retry_timeout
                .map(|timeout| if timeout.is_zero() { response_timeout } else { Some(timeout) })??,
            retry_body_bytes: retry_body_bytes?,
            max_head_bytes: max_head_bytes?,
            max_fields: max_fields?,
            panic_threshold: panic_threshold?,
            addresses: addresses?,
            queue_timeout: queue_timeout?,
            transport: transport?,
            probe: probe?,
            ejection: ejection?,
            sticky: sticky?,
        })
    }

    fn transport(&mut self, section: &Section<'t>) -> Option<TransportConfig> {
        let source_address = self.value(section, "source_address", values::ip_address);
        let versions = [("off", ProxyProtocol::Off), ("v1", ProxyProtocol::V1), ("v2", ProxyProtocol::V2)];
        let proxy_protocol = self.value(section, "proxy_protocol", values::choice(&versions));
        let tls = match section.written("tls").map(Spanned::get_ref) {
            Some(DeValue::Boolean(false)) => Some(None),
            Some(DeValue::Boolean(true)) => self.backend_tls(&section.without("tls"), section.offset("tls")).map(Some),
            Some(DeValue::Table(_)) => {
                let inner = self.section(section, "tls");
                self.backend_tls(&inner, section.offset("tls")).map(Some)
            }
            Some(_) => {
                let name = section.name_of("tls");
                let message = format!("{name} is neither true nor a table: write tls = true, or a section [pool.tls]");
                self.problem(section.offset("tls"), message);
                None
            }
            None => Some(None),
        };
        Some(TransportConfig { source_address: source_address?, proxy_protocol: proxy_protocol?, tls: tls? })
    }

    fn backend_tls(&mut self, section: &Section<'t>, offset: usize) -> Option<BackendTls> {
        let base = self.base(section);
        let name = self.optional(section, "name", values::certificate_name);
        let verify = self.optional(section, "verify", values::flag);
        let ca = self.optional(section, "ca", |v| files::certificates(base, v));
        let certificate = self.optional(section, "certificate", |v| files::certificates(base, v));
        let key = self.optional(section, "key", |v| files::key(base, v));
        let (name, verify, ca) = (name?.flatten(), verify?.unwrap_or(true), ca?.flatten());
        let (certificate, key) = (certificate?.flatten(), key?.flatten());
        if certificate.is_some() != key.is_some() {
            let (there, missing) = if key.is_some() { ("key", "certificate") } else { ("certificate", "key") };
            let message = format!("pool.tls.{there} is of no use without pool.tls.{missing}: write both, or neither");
            self.problem(section.offset(there), message);
            return None;
        }
        let (ca, roots) = match ca {
            Some((path, roots)) => (Some(path), roots.into()),
            None if !verify => (None, Arc::default()),
            None => match self.system_roots() {
                Ok(roots) => (None, roots),
                Err(problem) => {
                    let message = format!(
                        "pool.tls has no ca, and the CAs that this system trusts cannot be read: {problem}; write ca = \"FILE\" or install them (on Debian the package ca-certificates)"
                    );
                    self.problem(offset, message);
                    return None;
                }
            },
        };
        let (certificate, chain) = certificate.unzip();
        let (key, secret) = key.unzip();
        let trust = Trust { roots, chain: chain.unwrap_or_default(), key: secret };
        let tls = BackendTls { name, ca, certificate, key, verify, trust };
        if let Err(e) = tls.client_config() {
            let (key, message) = match tls.key {
                Some(_) => (
                    "key",
                    format!(
                        "pool.tls.key does not belong to pool.tls.certificate ({e}): name the key that the certificate was made for"
                    ),
                ),
                None => ("ca", format!("pool.tls cannot be used: {e}")),
            };
            self.problem(section.offset(key), message);
            return None;
        }
        Some(tls)
    }

    fn backends(&mut self, pool: &Section<'t>) -> Option<Vec<BackendConfig>> {
        if !pool.has("backends") {
            self.missing(pool, "backends");
            return None;
        }
        let elements = self.elements(pool, "backends")?;
        let mut addresses = HashMap::new();
        let mut backends = Some(Vec::new());
        for element in elements {
            let (backend, offset) = match element.get_ref() {
                DeValue::Table(_) => {
                    let section = self.element(pool, "backends", element);
                    (self.backend(&section), section.offset("address"))
                }
                _ => {
                    let address = self.read_at(pool, "backends", element, values::backend_address);
                    (address.map(BackendConfig::new), pool.at(element))
                }
            };
            if let Some(address) = backend.as_ref().map(|backend| &backend.address) {
                match addresses.entry(address.canonical()) {
                    Entry::Vacant(entry) => drop(entry.insert(address.clone())),
                    Entry::Occupied(first) => {
                        let spelling = match first.get() == address {
                            true => String::new(),
                            false => format!(", the first time as \"{}\"", first.get()),
                        };
                        let message = format!(
                            "pool.backends has \"{address}\" twice{spelling}: remove one, and write weight = 2 to send it twice as much"
                        );
                        self.problem(offset, message);
                    }
                }
            }
            collect(&mut backends, backend);
        }
        backends
    }

    fn backend(&mut self, section: &Section<'t>) -> Option<BackendConfig> {
        const STATES: &[(&str, AdminState)] =
            &[("active", AdminState::Active), ("draining", AdminState::Draining), ("down", AdminState::Down)];
        let address = self.required(section, "address", values::backend_address);
        let weight = self.value(section, "weight", values::weight);
        let state = self.value(section, "state", values::choice(STATES));
        let max_connections = self.value(section, "max_connections", values::whole(0, u32::MAX.into()));
        let max_connections = max_connections.map(NonZero::new);
        Some(BackendConfig { address: address?, weight: weight?, state: state?, max_connections: max_connections? })
    }

    fn probe(&mut self, section: &Section<'t>) -> Option<ProbeConfig> {
        let is_http = self.value(section, "type", values::choice(&[("http", true), ("tcp", false)]));
        let path = self.value(section, "path", values::request_target);
        let host = self.value(section, "host", values::host_field);
        let status = self.value(section, "status", values::status_ranges);
        let interval = self.value(section, "interval", values::duration(MILLISECOND, DAY));
        let timeout = self.value(section, "timeout", values::duration(MILLISECOND, DAY));
        let rise = self.value(section, "rise", values::whole(1, 100));
        let fall = self.value(section, "fall", values::whole(1, 100));
        if is_http == Some(false) {
            for key in ["path", "host", "status"].into_iter().filter(|key| section.has(key)) {
                let message =
                    format!("pool.probe.{key} has no effect for a tcp probe: remove it, or write type = \"http\"");
                self.problem(section.key_offset(key), message);
            }
        }
        if let (Some(timeout), Some(interval)) = (timeout, interval)
            && timeout > interval
        {
            let message = format!(
                "pool.probe.timeout is {timeout:?}, longer than the interval of {interval:?}: write a shorter timeout or a longer interval"
            );
            self.problem(section.first_offset(&["timeout", "interval"]), message);
        }
        let http = || Some(ProbeKind::Http { path: path?, host: host?, status: status? });
        Some(ProbeConfig {
            kind: if is_http? { http()? } else { ProbeKind::Tcp },
            interval: interval?,
            timeout: timeout?,
            rise: rise?,
            fall: fall?,
        })
    }

    fn ejection(&mut self, section: &Section<'t>) -> Option<EjectionConfig> {
        let consecutive_failures = self.value(section, "consecutive_failures", values::whole(0, 1000));
        let base_time = self.value(section, "base_time", values::duration(MILLISECOND, DAY));
        let max_time = self.value(section, "max_time", values::duration(MILLISECOND, DAY));
        let max_percent = self.value(section, "max_percent", values::whole(0, 100));
        let statuses = match section.is_text("statuses") {
            true => self.value(section, "statuses", values::failing_statuses),
            false => self.each(section, "statuses", values::failing_statuses).map(|codes| codes.concat()),
        };
        if let (Some(base_time), Some(max_time)) = (base_time, max_time)
            && max_time < base_time
        {
            let message = format!(
                "pool.ejection.max_time is {max_time:?}, shorter than the base_time of {base_time:?}: write a longer max_time or a shorter base_time"
            );
            self.problem(section.first_offset(&["max_time", "base_time"]), message);
        }
        Some(EjectionConfig {
            consecutive_failures: consecutive_failures?,
            base_time: base_time?,
            max_time: max_time?,
            max_percent: max_percent?,
            statuses: statuses?,
        })
    }

    fn sticky(&mut self, section: &Section<'t>) -> Option<StickyConfig> {
        const SAME_SITE: &[(&str, SameSite)] =
            &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)];
        const SECURE: &[(&str, SecureCookie)] =
            &[("auto", SecureCookie::Auto), ("always", SecureCookie::Always), ("never", SecureCookie::Never)];
        let base = self.base(section);
        let cookie = self.value(section, "cookie", values::cookie_name);
        // Browsers keep no cookie for longer than 400 days.
        let max_age = self.value(section, "max_age", values::duration(Duration::ZERO, DAY * 400));
        let same_site = self.value(section, "same_site", values::choice(SAME_SITE));
        let secure = self.value(section, "secure", values::choice(SECURE));
        let secret = self.value(section, "secret_file", |v| files::secret(base, v));
        let secret_file = self.value(section, "secret_file", |v| values::path(base, v));
        let path = self.value(section, "path", values::cookie_path);
        let grace = self.value(section, "grace", values::duration(Duration::ZERO, DAY));
        if (same_site, secure) == (Some(SameSite::None), Some(SecureCookie::Never)) {
            let message = "pool.sticky.secure is \"never\", but browsers refuse a cookie with same_site \"none\" that is not secure: write secure = \"auto\" or \"always\"";
            self.problem(section.offset("secure"), message);
        }
        Some(StickyConfig {
            cookie: cookie?,
            max_age: Some(max_age?).filter(|age| !age.is_zero()),
            same_site: same_site?,
            secure: secure?,
            secret: secret?,
            secret_file: secret_file?,
            path: path?,
            grace: grace?,
        })
    }
}
