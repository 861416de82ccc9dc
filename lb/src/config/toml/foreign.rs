//! Recognises files of other programs, so that one sentence takes the place of a problem for each of their lines. It is
//! asked about files that are not TOML, and goes by the first line with content: what none of these languages shares
//! with another or with TOML. It recognises nothing rather than something wrong.

use super::words::{NGINX_ABSENT, NGINX_DIRECTIVES, VALUES_INSTEAD};

/// A language of configuration files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Nginx,
    HaProxy,
    Caddyfile,
    Yaml,
    Json,
}

/// Directives that open a block in nginx.conf.
const NGINX_BLOCKS: [&str; 6] = ["events", "http", "location", "server", "stream", "upstream"];

/// Further directives with which an nginx.conf may begin.
const NGINX_BEGINNINGS: [&str; 4] = ["env", "include", "load_module", "pcre_jit"];

/// Keywords that begin a section in haproxy.cfg.
const HAPROXY_SECTIONS: [&str; 13] = [
    "backend",
    "cache",
    "defaults",
    "frontend",
    "global",
    "http-errors",
    "listen",
    "mailers",
    "peers",
    "program",
    "resolvers",
    "ring",
    "userlist",
];

/// Directives of which a Caddyfile that proxies, or answers anything, has one.
const CADDY_DIRECTIVES: [&str; 12] = [
    "encode",
    "file_server",
    "handle",
    "handle_path",
    "import",
    "php_fastcgi",
    "redir",
    "respond",
    "reverse_proxy",
    "rewrite",
    "root",
    "tls",
];

/// The offset of the first line with content, and what the file is, with what to do instead. `None`: no language is
/// recognised. `text` is not TOML.
pub(super) fn recognised(text: &str) -> Option<(usize, String)> {
    let (offset, first) = lines(text).next()?;
    let language = Language::of(text, offset, first)?;
    let every_setting = "`evenkeel config --default` prints every setting, and examples/ has whole files";
    let (what, instead) = match language {
        Language::Nginx => {
            ("a configuration of nginx", "docs/sites.md#from-nginx has what to write for each directive")
        }
        Language::HaProxy => (
            "a configuration of HAProxy",
            "write a [[listener]] for the address of a frontend and [[route]] or [[site]] for its rules, a [[pool]] for a \
             backend; examples/ has whole files",
        ),
        Language::Caddyfile => (
            "a Caddyfile",
            "write a [[listener]] for its addresses, a [[site]] for its hosts, a [[pool]] for reverse_proxy; examples/ has \
             whole files",
        ),
        Language::Yaml => ("YAML", every_setting),
        Language::Json => ("JSON", every_setting),
    };
    Some((offset, format!("this looks like {what}, but Evenkeel reads TOML: {instead}")))
}

impl Language {
    fn of(text: &str, offset: usize, first: &str) -> Option<Self> {
        if is_meant_as_toml(text) {
            return None;
        }
        let rest = &text[offset..];
        if is_json(rest) {
            return Some(Self::Json);
        }
        if is_yaml(first) {
            return Some(Self::Yaml);
        }
        if is_haproxy(first) {
            return Some(Self::HaProxy);
        }
        if is_nginx(rest, first) {
            return Some(Self::Nginx);
        }
        is_caddyfile(text, first).then_some(Self::Caddyfile)
    }
}

/// Lines with content, trimmed, with their offsets. Comments are left out; all of these languages but JSON begin them
/// in the same way.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut start = 0;
    text.split_inclusive('\n').filter_map(move |line| {
        let content = line.trim_start_matches('\u{feff}').trim();
        let offset = start + line.find(content).unwrap_or_default();
        start += line.len();
        (!content.is_empty() && !content.starts_with('#')).then_some((offset, content))
    })
}

/// Whether the file has a heading of TOML, or its lines are mostly assignments: then the first line is a slip.
fn is_meant_as_toml(text: &str) -> bool {
    let (mut count, mut assignments) = (0, 0);
    for (_, line) in lines(text) {
        if is_heading(line) {
            return true;
        }
        let key = line.split_once('=').map(|(key, _)| key.trim_end());
        count += 1;
        assignments += usize::from(key.is_some_and(|key| !key.is_empty() && key.chars().all(is_of_key)));
    }
    assignments * 2 > count
}

fn is_heading(line: &str) -> bool {
    let line = line.split('#').next().unwrap_or_default().trim_end();
    let name = line.strip_prefix('[').and_then(|line| line.strip_suffix(']'));
    let name = name.map(|name| name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name));
    name.is_some_and(|name| name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(is_of_key))
}

fn is_of_key(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

fn is_json(rest: &str) -> bool {
    let inside = |open: char| rest.strip_prefix(open).map(str::trim_start);
    inside('{').is_some_and(|inside| inside.starts_with(['"', '}']))
        || inside('[').is_some_and(|inside| inside.starts_with('{'))
}

fn is_yaml(first: &str) -> bool {
    let is_key = |key: &str| !key.is_empty() && key.chars().all(|c| is_of_key(c) || c == '/');
    let has_key = |line: &str| {
        line.split_once(':').is_some_and(|(key, value)| is_key(key) && !value.starts_with(|c: char| !c.is_whitespace()))
    };
    first == "---"
        || first.starts_with("--- ")
        || first.starts_with("%YAML")
        || first.starts_with("- ")
        || has_key(first)
}

fn is_haproxy(first: &str) -> bool {
    let first = first.split('#').next().unwrap_or_default();
    HAPROXY_SECTIONS.contains(&first_word(first)) && !first.contains([';', '{', '=', ':', '"'])
}

fn is_nginx(rest: &str, first: &str) -> bool {
    let is_directive = |word: &str| {
        NGINX_DIRECTIVES.iter().any(|(directive, ..)| *directive == word)
            || NGINX_ABSENT.iter().chain(VALUES_INSTEAD).any(|(directive, _)| *directive == word)
            || NGINX_BLOCKS.contains(&word)
            || NGINX_BEGINNINGS.contains(&word)
    };
    let opens_block = |line: &str| line.contains('{') && NGINX_BLOCKS.contains(&first_word(line));
    // A directive of a module that is unknown here may come first.
    let has_directives = is_directive(first_word(first)) || lines(rest).any(|(_, line)| opens_block(line));
    has_directives && lines(rest).any(|(_, line)| line.contains(';'))
}

fn is_caddyfile(text: &str, first: &str) -> bool {
    // An address, a snippet, or the global options; addresses may also stand alone in their line.
    let is_beginning = first.ends_with('{') || first.contains(['.', ':']) || first == "localhost";
    let is_directive = |line: &str| CADDY_DIRECTIVES.contains(&first_word(line));
    is_beginning && lines(text).any(|(_, line)| is_directive(line)) && lines(text).all(|(_, line)| !line.ends_with(';'))
}

fn first_word(line: &str) -> &str {
    line.split(|c: char| c.is_whitespace() || matches!(c, ';' | '{')).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn language(text: &str) -> Option<Language> {
        let (offset, first) = lines(text).next()?;
        Language::of(text, offset, first)
    }

    #[test]
    fn files_of_other_programs_are_recognised() {
        for (expected, text) in [
            (Language::Nginx, "user www-data;\nworker_processes auto;\nhttp {\n}\n"),
            (
                Language::Nginx,
                "# of the distribution\n\nserver {\n\tlisten 80;\n\tlocation / { proxy_pass http://app; }\n}\n",
            ),
            (Language::Nginx, "http\n{\n    include mime.types;\n}\n"),
            (Language::Nginx, "upstream app { server 10.0.0.1:80; server 10.0.0.2:80; }"),
            (Language::Nginx, "log_format main '$remote_addr'\n    '$status';\n"),
            (Language::Nginx, "more_set_headers 'Server: me';\nserver {\n listen 80;\n}\n"),
            (Language::Nginx, "access_by_lua_block {\n  a = 1\n}\nlocation /x {\n return 404;\n}\n"),
            (Language::HaProxy, "global\n    daemon\n    maxconn 256\n\ndefaults\n    mode http\n"),
            (
                Language::HaProxy,
                "# a comment\nfrontend http-in # the first\n    bind *:80\n    default_backend servers\n",
            ),
            (Language::HaProxy, "defaults web from base\n  timeout client 5s\n"),
            (Language::Caddyfile, "example.com {\n\treverse_proxy localhost:9000\n}\n"),
            (Language::Caddyfile, "localhost\n\nreverse_proxy 127.0.0.1:9000\n"),
            (Language::Caddyfile, ":80 {\n  respond \"fine\"\n}\n"),
            (
                Language::Caddyfile,
                "{\n\temail a@example.com\n}\nexample.com, www.example.com {\n\troot * /srv\n\tfile_server\n}\n",
            ),
            (Language::Caddyfile, "(common) {\n\tencode gzip\n}\n"),
            (Language::Yaml, "---\nlistener:\n  address: 0.0.0.0:80\n"),
            (Language::Yaml, "\u{feff}listener:\n  - address: \"0.0.0.0:80\"\n"),
            (
                Language::Yaml,
                "apiVersion: v1\nkind: ConfigMap\ndata:\n  nginx.conf: |\n    server {\n      listen 80;\n    }\n",
            ),
            (Language::Yaml, "- address: 0.0.0.0:80\n"),
            (Language::Json, "{\n  \"listener\": [{ \"address\": \"0.0.0.0:80\" }]\n}\n"),
            (Language::Json, "{\"listener\":[]}"),
            (Language::Json, "{}\n"),
            (Language::Json, "[\n  { \"address\": \"0.0.0.0:80\" }\n]\n"),
        ] {
            assert_eq!(language(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn slips_in_toml_are_not_taken_for_another_language() {
        for text in [
            "",
            "# nothing\n",
            "listen 80;\n[[listener]]\naddress = \"0.0.0.0:80\"\n",
            "listener:\naddress = \"0.0.0.0:80\"\nname = \"a\"\n",
            "[server\nthreads = 1\n",
            "[[listener]\naddress = \"0.0.0.0:80\"\n",
            "address: \"0.0.0.0:80\"\n[[pool]] # of the application\nname = \"app\"\n",
            "server.threads = 1\nlog.level = info\n",
            "user www-data\n[server]\nthreads = 1\n",
            "global\nthreads = 1\nuser = \"www-data\"\n",
            "Not a configuration at all.\nA text of two lines.\n",
            "<VirtualHost *:80>\n  ServerName example.com\n</VirtualHost>\n",
            "#!/bin/sh\necho a; echo b\n",
            "key=value\nother=value with spaces\n",
        ] {
            assert_eq!(language(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_line_with_content_is_named() {
        let (offset, message) = recognised("# a comment\n\n  server {\n    listen 80;\n  }\n").expect("recognised");
        assert_eq!(offset, 15);
        assert!(
            message.starts_with("this looks like a configuration of nginx, but Evenkeel reads TOML: "),
            "{message}"
        );
    }
}
