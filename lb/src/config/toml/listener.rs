//! `[[listener]]`: its addresses, and the settings of its clients.

use std::num::NonZero;

use super::reader::{Reader, Section};
use super::tls::{Named, Pinnable};
use super::values::{self, DAY, MILLISECOND};
use super::{MAX_FIELDS, MAX_HEAD_BYTES, MIN_HEAD_BYTES, collect, element_offset, overlap, trusted_peers};
use crate::config::backend::SocketAddress;
use crate::config::site::ListenerName;
use crate::config::tls::TlsConfig;
use crate::config::{HalfClose, ListenerAddresses, ListenerConfig, ListenerSettings, ProxySenders, SocketFileRights};
use crate::message::limits::{AmbiguousNames, NonAsciiTargets};

impl<'t> Reader<'t> {
    /// The listeners, each with the offset of its address, and what sites can refer to, even if a listener has
    /// problems.
    pub(super) fn listeners(&mut self, roots: &[Section<'t>]) -> (Option<Vec<(ListenerConfig, usize)>>, Vec<Named>) {
        let sections = self.list(roots, "listener", "add one with its address, such as \"0.0.0.0:8888\"");
        let mut addresses: Vec<SocketAddress> = Vec::new();
        let mut names: Vec<(ListenerName, bool)> = Vec::new();
        let (mut listeners, mut all_named) = (Some(Vec::new()), Vec::new());
        for section in &sections {
            let (listener, named) = self.listener(section);
            all_named.push(named);
            let mut own: Vec<SocketAddress> = Vec::new();
            for (index, address) in listener.iter().flat_map(|listener| listener.addresses.iter()).enumerate() {
                let index_among_others = index.checked_sub(usize::from(section.has("address")));
                let (offset, key) =
                    match index_among_others.and_then(|index| element_offset(section, "addresses", index)) {
                        Some(offset) => (offset, "addresses has"),
                        None => (section.offset("address"), "address is"),
                    };
                if let Some(taken) = own.iter().find(|taken| overlap(taken, address)) {
                    let why = match taken == address {
                        true => "is listed already".to_owned(),
                        false => format!("overlaps with \"{taken}\""),
                    };
                    self.problem(offset, format!("listener.{key} \"{address}\", which {why}: remove one of the two"));
                } else if let Some(taken) = addresses.iter().find(|taken| overlap(taken, address)) {
                    let fix = if address.ip().is_some() { "port" } else { "path" };
                    let message = format!(
                        "listener.{key} \"{address}\", which another [[listener]] has taken with \"{taken}\": write another {fix}"
                    );
                    self.problem(offset, message);
                }
                own.push(address.clone());
            }
            addresses.append(&mut own);
            if let Some(listener) = &listener {
                // Several listeners on free ports may have the same address and so the same default name.
                let is_given = section.has("name");
                if names.iter().any(|(name, was_given)| *name == listener.name && (is_given || *was_given)) {
                    let message = format!(
                        "listener.name is \"{}\", which another [[listener]] has: write another name",
                        listener.name
                    );
                    self.problem(section.first_offset(&["name", "address", "addresses"]), message);
                }
                names.push((listener.name.clone(), is_given));
            }
            collect(
                &mut listeners,
                listener.map(|listener| (listener, section.first_offset(&["address", "addresses"]))),
            );
        }
        (listeners, all_named)
    }

    fn listener(&mut self, section: &Section<'t>) -> (Option<ListenerConfig>, Named) {
        let addresses = self.addresses(section);
        let name = match section.has("name") {
            true => self.value(section, "name", values::listener_name),
            false => addresses.as_ref().map(|addresses| ListenerName::from(addresses.first())),
        };
        let inner = self.section(section, "tls");
        let tls = match section.has("tls") {
            true if inner.is_written() => self.tls(&inner).map(Some),
            true => None,
            false => Some(None),
        };
        let named = Named { name, certificates: Pinnable::of(tls.as_ref().map(Option::as_ref)) };
        let listener = self.listener_of(section, named.name.clone(), addresses, tls);
        (listener, named)
    }

    fn listener_of(
        &mut self,
        section: &Section<'t>,
        name: Option<ListenerName>,
        addresses: Option<ListenerAddresses>,
        tls: Option<Option<TlsConfig>>,
    ) -> Option<ListenerConfig> {
        let has_unix_socket = addresses.as_ref().is_some_and(|all| all.iter().any(|address| address.ip().is_none()));
        let socket_file = self.socket_file(section, has_unix_socket);
        let proxy_protocol = self.proxy_protocol(section);
        let keepalive_timeout = self.value(section, "keepalive_timeout", values::duration(MILLISECOND, DAY));
        let header_timeout = self.value(section, "header_timeout", values::duration(MILLISECOND, DAY));
        let body_timeout = self.value(section, "body_timeout", values::duration(MILLISECOND, DAY));
        let send_timeout = self.value(section, "send_timeout", values::duration(MILLISECOND, DAY));
        let lingering_time = self.value(section, "lingering_time", values::duration(MILLISECOND, DAY));
        let lingering_timeout = self.value(section, "lingering_timeout", values::duration(MILLISECOND, DAY));
        let min_rate = self.value(section, "min_rate", values::size::<u32>(0, u32::MAX.into()));
        let half_close = [("cancel", HalfClose::Cancel), ("answer", HalfClose::Answer)];
        let half_close = self.value(section, "half_close", values::choice(&half_close));
        let h2c = self.value(section, "h2c", values::flag);
        let rules =
            [("drop", AmbiguousNames::Drop), ("pass", AmbiguousNames::Pass), ("reject", AmbiguousNames::Reject)];
        let ambiguous_names = self.value(section, "ambiguous_names", values::choice(&rules));
        let rules = [("reject", NonAsciiTargets::Reject), ("pass", NonAsciiTargets::Pass)];
        let non_ascii_targets = self.value(section, "non_ascii_targets", values::choice(&rules));
        let max_line_bytes =
            self.value(section, "max_request_line_bytes", values::size(MIN_HEAD_BYTES, MAX_HEAD_BYTES));
        let max_head_bytes = self.value(section, "max_head_bytes", values::size(MIN_HEAD_BYTES, MAX_HEAD_BYTES));
        let max_fields = self.value(section, "max_fields", values::whole(1, MAX_FIELDS));
        let max_body_bytes = self.value(section, "max_body_bytes", values::size::<u64>(0, i64::MAX as u64));
        Some(ListenerConfig {
            name: name?,
            addresses: addresses?,
            socket_file: socket_file?,
            tls: tls?,
            proxy_protocol: proxy_protocol?,
            settings: ListenerSettings {
                keepalive_timeout: keepalive_timeout?,
                header_timeout: header_timeout?,
                body_timeout: body_timeout?,
                send_timeout: send_timeout?,
                lingering_time: lingering_time?,
                lingering_timeout: lingering_timeout?,
                min_rate: min_rate.map(NonZero::new)?,
                half_close: half_close?,
                h2c: h2c?,
                ambiguous_names: ambiguous_names?,
                non_ascii_targets: non_ascii_targets?,
                max_request_line_bytes: max_line_bytes?,
                max_head_bytes: max_head_bytes?,
                max_fields: max_fields?,
                max_body_bytes: max_body_bytes.map(|bytes| (bytes != 0).then_some(bytes))?,
            },
        })
    }

    /// `address` comes before `addresses`.
    fn addresses(&mut self, section: &Section<'t>) -> Option<ListenerAddresses> {
        let base = self.base(section);
        let one = match section.has("address") || !section.has("addresses") {
            true => self.required(section, "address", |v| values::listener_address(base, v)).map(Some),
            false => Some(None),
        };
        let others = match section.has("addresses") {
            true => self.each(section, "addresses", |v| values::listener_address(base, v)),
            false => Some(Vec::new()),
        };
        let addresses = ListenerAddresses::new(one?.into_iter().chain(others?).collect());
        if addresses.is_none() {
            let message = "listener.addresses is empty: write at least one, such as \"0.0.0.0:8888\"";
            self.problem(section.offset("addresses"), message);
        }
        addresses
    }

    fn socket_file(&mut self, section: &Section<'t>, has_unix_socket: bool) -> Option<Option<SocketFileRights>> {
        let mode = self.optional(section, "mode", values::mode);
        let owner = self.optional(section, "owner", values::user_and_group);
        if !has_unix_socket {
            for key in ["mode", "owner"].into_iter().filter(|key| section.has(key)) {
                let message = format!(
                    "listener.{key} has no effect without a Unix socket: remove it, or write address = \"unix:/run/evenkeel.sock\""
                );
                self.problem(section.key_offset(key), message);
            }
        }
        let rights = SocketFileRights { mode: mode?.unwrap_or(SocketFileRights::DEFAULT_MODE), owner: owner? };
        Some(has_unix_socket.then_some(rights))
    }

    fn proxy_protocol(&mut self, listener: &Section<'t>) -> Option<Option<ProxySenders>> {
        let section = self.section(listener, "proxy_protocol");
        if !section.is_written() {
            return Some(None);
        }
        let from = match section.has("from") {
            true => self.each(&section, "from", values::peer_network)?,
            false => Vec::new(),
        };
        if from.is_empty() {
            let message = "listener.proxy_protocol.from names no network: write the addresses of the load balancers that send the header, such as [\"10.0.0.0/8\"]";
            self.problem(section.first_offset(&["from"]), message);
            return None;
        }
        Some(Some(ProxySenders { from: trusted_peers(from) }))
    }
}
