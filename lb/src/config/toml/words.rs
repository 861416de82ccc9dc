//! Words of nginx, HAProxy and other balancers that a configuration may be written with by mistake, and what to write
//! in their place.

use super::reader::heading;

/// Directives of nginx whose names are no settings: the section and the keys in their place; none: the section itself.
pub(super) const NGINX_DIRECTIVES: &[(&str, &str, &[&str])] = &[
    ("add_header", "site.route", &["response_headers"]),
    ("client_body_buffer_size", "pool", &["retry_body_bytes"]),
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
    ("limit_except", "site.route", &["methods"]),
    ("listen", "listener", &["address"]),
    ("location", "site.route", &["path", "exact", "prefix", "regex"]),
    ("log_format", "access_log", &["format"]),
    ("map", "values", &[]),
    ("match", "pool.probe", &["status"]),
    ("max_conns", "pool.backends", &["max_connections"]),
    ("max_fails", "pool.ejection", &["consecutive_failures"]),
    ("max_headers", "listener", &["max_fields"]),
    ("proxy_bind", "pool", &["source_address"]),
    ("proxy_buffer_size", "pool", &["max_head_bytes"]),
    ("proxy_connect_timeout", "pool", &["connect_timeout"]),
    ("proxy_cookie_domain", "site.route", &["cookies"]),
    ("proxy_cookie_flags", "site.route", &["cookies"]),
    ("proxy_cookie_path", "site.route", &["cookies"]),
    ("proxy_hide_header", "site.route", &["response_headers"]),
    ("proxy_ignore_client_abort", "listener", &["half_close"]),
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
    ("worker_shutdown_timeout", "server", &["shutdown_timeout"]),
];

/// Directives of nginx that nothing takes the place of, with what to do.
pub(super) const NGINX_ABSENT: &[(&str, &str)] = &[
    ("absolute_redirect", "a redirect has the Location that is written; remove it"),
    ("add_trailer", "trailers of backends are passed on, and there are no others"),
    (
        "alias",
        "no files are served: send the path to a server that does, such as nginx, by a [[pool]]; a page alone can be error_pages or respond",
    ),
    (
        "auth_basic",
        "passwords are not checked: let the backend ask for them, or answer 403 but for networks or client certificates; do not just remove it",
    ),
    (
        "auth_basic_user_file",
        "passwords are not checked: let the backend ask for them, or answer 403 but for networks or client certificates; do not just remove it",
    ),
    (
        "auth_request",
        "passwords are not checked: let the backend ask for them, or answer 403 but for networks or client certificates; do not just remove it",
    ),
    (
        "autoindex",
        "no files are served: send the path to a server that does, such as nginx, by a [[pool]]; a page alone can be error_pages or respond",
    ),
    ("backlog", "4096 connections wait at most, or net.core.somaxconn if that is less; remove it"),
    ("backup", "addresses of a later priority are those of SRV records (docs/names.md)"),
    ("brotli", "responses are passed on as the backend has compressed them; remove it, and compress there"),
    ("client_body_temp_path", "nothing is written to files; remove it"),
    ("client_header_buffer_size", "buffers have the size that they need, up to max_head_bytes; remove it"),
    ("daemon", "the process stays in the foreground, for systemd or a container; remove it"),
    ("default_type", "write content_type in respond or in a table of error_pages"),
    ("events", "write threads and max_connections in [server]"),
    ("expires", "write response_headers = { set = { Cache-Control = \"max-age=3600\" } } in a site or a route"),
    ("fastcgi_pass", "there is no FastCGI: let the backend speak HTTP"),
    ("grpc_pass", "there is no HTTP/2 to backends, and so no gRPC"),
    ("gzip", "responses are passed on as the backend has compressed them; remove it, and compress there"),
    ("http", "write its contents at the top level, without http"),
    ("http3", "there is no HTTP/3; remove it"),
    (
        "index",
        "no files are served: send the path to a server that does, such as nginx, by a [[pool]]; a page alone can be error_pages or respond",
    ),
    ("ipv6only", "[::] is IPv6 alone; write both addresses where both are meant"),
    ("keepalive_requests", "a connection carries any number of requests; remove it"),
    ("keepalive_time", "a connection may be of any age; remove it"),
    (
        "limit_conn",
        "nothing limits a single client yet, but max_connections, min_rate and the timeouts hold for all; keep a limit that protects something in the backend",
    ),
    (
        "limit_conn_zone",
        "nothing limits a single client yet, but max_connections, min_rate and the timeouts hold for all; keep a limit that protects something in the backend",
    ),
    (
        "limit_rate",
        "nothing limits a single client yet, but max_connections, min_rate and the timeouts hold for all; keep a limit that protects something in the backend",
    ),
    (
        "limit_req",
        "nothing limits a single client yet, but max_connections, min_rate and the timeouts hold for all; keep a limit that protects something in the backend",
    ),
    (
        "limit_req_zone",
        "nothing limits a single client yet, but max_connections, min_rate and the timeouts hold for all; keep a limit that protects something in the backend",
    ),
    ("map_hash_bucket_size", "tables have the size that they need; remove it"),
    ("master_process", "there is one process; remove it"),
    ("merge_slashes", "routes see paths without \"//\", and backends get them as they came; remove it"),
    ("mirror", "a request goes to one backend"),
    (
        "open_file_cache",
        "no files are served: send the path to a server that does, such as nginx, by a [[pool]]; a page alone can be error_pages or respond",
    ),
    ("pid", "there is no pid file: the service manager knows the process id; remove it"),
    ("port_in_redirect", "a redirect has the Location that is written; remove it"),
    ("proxy_buffering", "a response is passed on as it comes; remove it"),
    ("proxy_buffers", "a response is passed on as it comes; remove it"),
    ("proxy_busy_buffers_size", "a response is passed on as it comes; remove it"),
    ("proxy_cache", "responses are not cached; remove it"),
    ("proxy_cache_path", "responses are not cached; remove it"),
    ("proxy_cache_valid", "responses are not cached; remove it"),
    ("proxy_http_version", "backends are spoken to by HTTP/1.1; remove it"),
    ("proxy_max_temp_file_size", "nothing is written to files; remove it"),
    ("proxy_pass_header", "every field of a response is passed on; remove it"),
    ("proxy_ssl_ciphers", "the suites that backends are offered cannot be chosen; remove it"),
    ("proxy_ssl_conf_command", "TLS is not OpenSSL's; remove it"),
    ("proxy_ssl_crl", "revocation lists are not read; let backends' certificates expire soon"),
    ("proxy_ssl_password_file", "the key in [pool.tls] is read as it is; decrypt the file"),
    ("proxy_ssl_protocols", "backends are offered TLS 1.2 and 1.3; remove it"),
    ("proxy_ssl_session_reuse", "sessions with backends are resumed where they allow it; remove it"),
    ("proxy_ssl_verify_depth", "a certificate is accepted if its chain leads to one in ca; remove it"),
    ("real_ip_recursive", "the client is always the last address that is not of trusted_proxies; remove it"),
    ("resolve", "names are resolved again whenever an answer is out of date (docs/names.md); remove it"),
    ("reuseport", "each thread has a socket of its own in any case; remove it"),
    ("rewrite_log", "`evenkeel check --explain` shows what becomes of a request; remove it"),
    (
        "root",
        "no files are served: send the path to a server that does, such as nginx, by a [[pool]]; a page alone can be error_pages or respond",
    ),
    (
        "satisfy",
        "passwords are not checked: let the backend ask for them, or answer 403 but for networks or client certificates; do not just remove it",
    ),
    ("sendfile", "bytes are sent as they come; remove it"),
    ("server_names_hash_bucket_size", "tables have the size that they need; remove it"),
    ("server_tokens", "no response is given a Server field, and that of a backend is passed on; remove it"),
    ("slow_start", "a backend that is back has its whole share at once; remove it"),
    ("so_keepalive", "connections that are silent end by the timeouts of [[listener]]; remove it"),
    ("ssl_buffer_size", "the size of records cannot be chosen; remove it"),
    ("ssl_conf_command", "TLS is not OpenSSL's; remove it"),
    ("ssl_crl", "revocation lists are not read; let clients' certificates expire soon (docs/tls.md)"),
    ("ssl_dhparam", "there are no suites with DHE; remove it"),
    ("ssl_early_data", "early data is not accepted, since it can be replayed; remove it"),
    ("ssl_ecdh_curve", "groups of key exchange cannot be chosen; remove it"),
    ("ssl_ocsp", "issuers of clients' certificates are not asked; let certificates expire soon (docs/tls.md)"),
    ("ssl_session_cache", "sessions are resumed by tickets alone; remove it, or share tickets by ticket_file"),
    ("ssl_session_tickets", "sessions are resumed by tickets in any case; remove it, or share tickets by ticket_file"),
    ("ssl_session_timeout", "a session may be resumed for twelve hours at most; remove it"),
    ("ssl_stapling", "OCSP responses are not stapled (docs/tls.md); remove it"),
    ("ssl_stapling_verify", "OCSP responses are not stapled (docs/tls.md); remove it"),
    ("ssl_verify_depth", "a certificate is accepted if its chain leads to one in ca; remove it"),
    ("stream", "TCP and UDP that is not HTTP is not balanced"),
    ("stub_status", "write nothing: GET /metrics on the address of [admin] has these numbers"),
    ("sub_filter", "content is passed on as it is"),
    ("tcp_nodelay", "bytes are sent as they come; remove it"),
    ("tcp_nopush", "bytes are sent as they come; remove it"),
    (
        "try_files",
        "no files are served: send the path to a server that does, such as nginx, by a [[pool]]; a page alone can be error_pages or respond",
    ),
    ("types", "write content_type in respond or in a table of error_pages"),
    ("types_hash_max_size", "tables have the size that they need; remove it"),
    ("uwsgi_pass", "there is no uwsgi: let the backend speak HTTP"),
    ("variables_hash_max_size", "tables have the size that they need; remove it"),
    ("worker_rlimit_nofile", "as many files may be open as the system lets the process open; remove it"),
    ("zone", "all threads know the same of a pool; remove it"),
];

/// Words of nginx and HAProxy that a value takes the place of: what to write.
pub(super) const VALUES_INSTEAD: &[(&str, &str)] = &[
    (
        "allow",
        "for nginx's allow write networks = [\"10.0.0.0/8\"] in a [[site.route]], and after it another one for the same path with respond = { status = 403 }",
    ),
    ("break", "for nginx's break write rewrite in a [[site.route]]"),
    ("default_server", "for nginx's default_server write hosts = [\"\"] in a [[site]]"),
    (
        "deny",
        "for nginx's deny write a [[site.route]] with respond = { status = 403 }, and networks in it or in one before it for the same path",
    ),
    ("down", "for nginx's down write state = \"down\" in a backend"),
    ("drain", "for nginx's drain write state = \"draining\" in a backend"),
    ("group", "the group follows the user: write user = \"www-data:www-data\" in [server]"),
    ("maxconn", "for HAProxy's maxconn write max_connections in a backend, or in [server] for all clients"),
    ("proxy_ssl", "for nginx's proxy_ssl write tls = true in [[pool]]"),
    ("queue", "for nginx's queue write max_connections in a backend and queue_timeout in [[pool]]"),
    ("service", "for nginx's service write address = \"srv:_http._tcp.example\" in a backend"),
    ("set", "for nginx's set write [values], and the variable where it is used"),
];

/// Words that mean something else in one section than elsewhere: the section, the word, and what to write there.
pub(super) const WORDS_OF_SECTIONS: &[(&str, &str, &str)] = &[
    ("", "backend", "[[pool]] with backends"),
    ("", "bind", "[[listener]] with address"),
    ("", "cluster", "[[pool]]"),
    ("", "clusters", "[[pool]]"),
    ("", "entryPoints", "[[listener]]"),
    ("", "frontend", "[[listener]], and [[route]] or [[site]]"),
    ("", "global", "[server]"),
    ("", "logging", "[log] and [access_log]"),
    ("", "servers", "[[pool]] with backends"),
    ("", "tls", "[listener.tls] for clients, or [pool.tls] for backends"),
    ("", "upstreams", "[[pool]]"),
    ("", "virtual_host", "[[site]]"),
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
