//! Words of nginx and HAProxy that a configuration may be written with by mistake, and what to write in their place.

use super::reader::heading;

/// Directives of nginx whose names are no settings: the section and the keys in their place; none: the section itself.
pub(super) const NGINX_DIRECTIVES: &[(&str, &str, &[&str])] = &[
    ("add_header", "site.route", &["response_headers"]),
    ("client_body_timeout", "listener", &["body_timeout"]),
    ("client_header_timeout", "listener", &["header_timeout"]),
    ("client_max_body_size", "listener", &["max_body_bytes"]),
    ("error_log", "log", &["file"]),
    ("error_page", "site.route", &["error_pages"]),
    ("fail_timeout", "pool.ejection", &["base_time"]),
    ("geo", "values", &[]),
    ("hash", "pool", &["algorithm"]),
    ("health_check", "pool.probe", &[]),
    ("http2", "listener.tls", &["alpn"]),
    ("if", "site.route", &["when"]),
    ("ignore_invalid_headers", "listener", &["ambiguous_names"]),
    ("ip_hash", "pool", &["algorithm"]),
    ("keepalive", "server", &["idle_connections"]),
    ("large_client_header_buffers", "listener", &["max_head_bytes", "max_request_line_bytes"]),
    ("least_conn", "pool", &["algorithm"]),
    ("listen", "listener", &["address"]),
    ("location", "site.route", &["path", "exact", "prefix", "regex"]),
    ("log_format", "access_log", &["format"]),
    ("map", "values", &[]),
    ("max_conns", "pool.backends", &["max_connections"]),
    ("max_fails", "pool.ejection", &["consecutive_failures"]),
    ("proxy_bind", "pool", &["source_address"]),
    ("proxy_buffer_size", "pool", &["max_head_bytes"]),
    ("proxy_connect_timeout", "pool", &["connect_timeout"]),
    ("proxy_cookie_domain", "site.route", &["cookies"]),
    ("proxy_cookie_flags", "site.route", &["cookies"]),
    ("proxy_cookie_path", "site.route", &["cookies"]),
    ("proxy_hide_header", "site.route", &["response_headers"]),
    ("proxy_intercept_errors", "site.route", &["intercept_errors"]),
    ("proxy_next_upstream", "pool", &["retries"]),
    ("proxy_next_upstream_timeout", "pool", &["retry_timeout"]),
    ("proxy_next_upstream_tries", "pool", &["retries"]),
    ("proxy_pass", "site.route", &["pool"]),
    ("proxy_read_timeout", "pool", &["response_timeout", "read_timeout"]),
    ("proxy_redirect", "site.route", &["location"]),
    ("proxy_request_buffering", "pool", &["retry_body_bytes"]),
    ("proxy_send_timeout", "pool", &["write_timeout"]),
    ("proxy_set_header", "site.route", &["request_headers"]),
    ("proxy_ssl_certificate", "pool.tls", &["certificate"]),
    ("proxy_ssl_certificate_key", "pool.tls", &["key"]),
    ("proxy_ssl_name", "pool.tls", &["name"]),
    ("proxy_ssl_server_name", "pool.tls", &["name"]),
    ("proxy_ssl_trusted_certificate", "pool.tls", &["ca"]),
    ("proxy_ssl_verify", "pool.tls", &["verify"]),
    ("real_ip_header", "server", &["forwarded_by"]),
    ("resolver", "server.resolver", &["servers"]),
    ("resolver_timeout", "server.resolver", &["timeout"]),
    ("return", "site.route", &["respond", "redirect"]),
    ("server_name", "site", &["hosts"]),
    ("set_real_ip_from", "server", &["trusted_proxies"]),
    ("split_clients", "values", &[]),
    ("ssl", "listener", &["tls"]),
    ("ssl_alpn", "listener.tls", &["alpn"]),
    ("ssl_certificate", "listener.tls", &["certificate"]),
    ("ssl_certificate_key", "listener.tls", &["key"]),
    ("ssl_ciphers", "listener.tls", &["profile"]),
    ("ssl_client_certificate", "listener.tls.client_certificates", &["ca"]),
    ("ssl_handshake_timeout", "listener.tls", &["handshake_timeout"]),
    ("ssl_password_file", "listener.tls", &["password_file"]),
    ("ssl_prefer_server_ciphers", "listener.tls", &["profile"]),
    ("ssl_protocols", "listener.tls", &["profile"]),
    ("ssl_reject_handshake", "listener.tls", &["unknown_names"]),
    ("ssl_session_ticket_key", "listener.tls", &["ticket_file"]),
    ("ssl_trusted_certificate", "listener.tls.client_certificates", &["ca"]),
    ("ssl_verify_client", "listener.tls.client_certificates", &["mode"]),
    ("underscores_in_headers", "listener", &["ambiguous_names"]),
    ("upstream", "pool", &["name", "backends"]),
    ("user", "server", &["user"]),
    ("worker_connections", "server", &["max_connections"]),
    ("worker_processes", "server", &["threads"]),
];

/// Directives of nginx that nothing takes the place of, with what to do.
pub(super) const NGINX_ABSENT: &[(&str, &str)] = &[
    ("backlog", "4096 connections wait at most, or net.core.somaxconn if that is less; remove it"),
    ("backup", "addresses of a later priority are those of SRV records (docs/names.md)"),
    ("ipv6only", "[::] is IPv6 alone; write both addresses where both are meant"),
    ("pid", "there is no pid file: the service manager knows the process id; remove it"),
    ("proxy_buffering", "a response is passed on as it comes; remove it"),
    ("proxy_http_version", "backends are spoken to by HTTP/1.1; remove it"),
    ("proxy_ssl_ciphers", "the suites that backends are offered cannot be chosen; remove it"),
    ("proxy_ssl_conf_command", "TLS is not OpenSSL's; remove it"),
    ("proxy_ssl_crl", "revocation lists are not read; let backends' certificates expire soon"),
    ("proxy_ssl_password_file", "the key in [pool.tls] is read as it is; decrypt the file"),
    ("proxy_ssl_protocols", "backends are offered TLS 1.2 and 1.3; remove it"),
    ("proxy_ssl_session_reuse", "sessions with backends are resumed where they allow it; remove it"),
    ("proxy_ssl_verify_depth", "a certificate is accepted if its chain leads to one in ca; remove it"),
    ("resolve", "names are resolved again whenever an answer is out of date (docs/names.md); remove it"),
    ("reuseport", "each thread has a socket of its own in any case; remove it"),
    ("slow_start", "a backend that is back has its whole share at once; remove it"),
    ("so_keepalive", "connections that are silent end by the timeouts of [[listener]]; remove it"),
    ("ssl_buffer_size", "the size of records cannot be chosen; remove it"),
    ("ssl_conf_command", "TLS is not OpenSSL's; remove it"),
    ("ssl_crl", "revocation lists are not read; let clients' certificates expire soon (docs/tls.md)"),
    ("ssl_dhparam", "there are no suites with DHE; remove it"),
    ("ssl_ecdh_curve", "groups of key exchange cannot be chosen; remove it"),
    ("ssl_early_data", "early data is not accepted, since it can be replayed; remove it"),
    ("ssl_ocsp", "issuers of clients' certificates are not asked; let certificates expire soon (docs/tls.md)"),
    ("ssl_session_cache", "sessions are resumed by tickets alone; remove it, or share tickets by ticket_file"),
    ("ssl_session_tickets", "sessions are resumed by tickets in any case; remove it, or share tickets by ticket_file"),
    ("ssl_session_timeout", "a session may be resumed for twelve hours at most; remove it"),
    ("ssl_stapling", "OCSP responses are not stapled (docs/tls.md); remove it"),
    ("ssl_stapling_verify", "OCSP responses are not stapled (docs/tls.md); remove it"),
    ("ssl_verify_depth", "a certificate is accepted if its chain leads to one in ca; remove it"),
    ("worker_rlimit_nofile", "as many files may be open as the system lets the process open; remove it"),
    ("zone", "all threads know the same of a pool; remove it"),
];

/// Words of nginx and HAProxy that a value takes the place of: what to write.
pub(super) const VALUES_INSTEAD: &[(&str, &str)] = &[
    ("default_server", "for nginx's default_server write hosts = [\"\"] in a [[site]]"),
    ("down", "for nginx's down write state = \"down\" in a backend"),
    ("group", "the group follows the user: write user = \"www-data:www-data\" in [server]"),
    ("maxconn", "for HAProxy's maxconn write max_connections in a backend, or in [server] for all clients"),
    ("proxy_ssl", "for nginx's proxy_ssl write tls = true in [[pool]]"),
    ("queue", "for nginx's queue write max_connections in a backend and queue_timeout in [[pool]]"),
    ("service", "for nginx's service write address = \"srv:_http._tcp.example\" in a backend"),
];

/// Words that mean something else in one section than elsewhere: the section, the word, and what to write there.
pub(super) const WORDS_OF_SECTIONS: &[(&str, &str, &str)] = &[
    ("", "tls", "[listener.tls] for clients, or [pool.tls] for backends"),
    ("listener", "ssl", "[listener.tls] with certificate and key"),
    ("listener", "ssl_certificate", "certificate in [listener.tls]"),
    ("listener.tls", "certificate_key", "key"),
    ("listener.tls", "ciphers", "profile"),
    ("listener.tls", "protocols", "profile"),
    ("pool", "keepalive_timeout", "idle_timeout"),
    ("pool", "server", "backends"),
    ("pool", "servers", "backends"),
    ("pool", "ssl", "tls = true"),
    ("pool.backends", "server", "address"),
    ("pool.backends", "ssl", "tls = true in [[pool]]"),
    ("pool.tls", "certificate_key", "key"),
    ("pool.tls", "server_name", "name"),
    ("pool.tls", "trusted_certificate", "ca"),
];

/// `write …; `, where `word` is one that people look for in this very section.
pub(super) fn in_section(path: &str, word: &str) -> Option<String> {
    let (.., instead) = WORDS_OF_SECTIONS.iter().find(|(section, other, _)| *section == path && *other == word)?;
    Some(format!("write {instead}; "))
}

/// `for nginx's … write …; `, where `word` is one of its directives, or of HAProxy's words.
pub(super) fn elsewhere(word: &str) -> Option<String> {
    if let Some((_, instead)) = VALUES_INSTEAD.iter().find(|(other, _)| *other == word) {
        return Some(format!("{instead}; "));
    }
    if let Some((_, instead)) = NGINX_ABSENT.iter().find(|(directive, _)| *directive == word) {
        return Some(format!("nginx's {word} has no counterpart: {instead}; "));
    }
    let (_, section, keys) = NGINX_DIRECTIVES.iter().find(|(directive, ..)| *directive == word)?;
    if keys.is_empty() {
        return Some(format!("for nginx's {word} write {}; ", heading(section)));
    }
    let joint = if *section == "pool" { " and " } else { " or " };
    Some(format!("for nginx's {word} write {} in {}; ", keys.join(joint), heading(section)))
}
