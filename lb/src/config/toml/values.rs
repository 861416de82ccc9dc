//! Parses single values. An error says what to write instead; it follows the word "write".

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use rustls::pki_types::ServerName;
use toml::de::DeValue;

use super::reader::did_you_mean;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{BackendAddress, MAX_UNIX_PATH_BYTES, SocketAddress, UNIX, Weight};
use crate::config::route::{HostPattern, PathPrefix};
use crate::config::site::{ListenerName, Share};
use crate::config::{AccessLogFile, PoolName, RequestIdField, StatusRanges, UserAndGroup};
use crate::message::ascii::is_token;
use crate::value::condition::MethodSet;
use crate::value::pattern::{Case, Pattern};

pub(super) type Read<T> = Result<T, String>;

pub(super) const MILLISECOND: Duration = Duration::from_millis(1);
pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

const UNITS: &[(&str, u64)] = &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];

pub(super) fn whole<T: TryFrom<u64>>(min: u64, max: u64) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let number = value.as_integer().and_then(|i| u64::from_str_radix(i.as_str(), i.radix()).ok());
        let in_range = number.filter(|number| (min..=max).contains(number));
        in_range.and_then(|number| T::try_from(number).ok()).ok_or_else(|| match max {
            _ if max == i64::MAX as u64 => format!("a whole number, {min} or more"),
            _ => format!("a whole number from {min} to {max}"),
        })
    }
}

/// A number of bytes, or a text with a unit.
pub(super) fn size<T: TryFrom<u64>>(min: u64, max: u64) -> impl Fn(&DeValue<'_>) -> Read<T> {
    const SIZES: &[(&str, u64)] = &[
        ("B", 1),
        ("KB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
    ];
    move |value| {
        let DeValue::String(text) = value else { return whole(min, max)(value) };
        let text = text.trim();
        let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(unit_at);
        let unit = unit.trim_start();
        // nginx's k and m are 1024 bytes and 1024 × 1024 bytes.
        let suggested_unit = match unit.to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => "KiB",
            "m" | "mb" | "mib" => "MiB",
            "g" | "gb" | "gib" => "GiB",
            _ => "KiB",
        };
        let Some((_, bytes)) = SIZES.iter().find(|(name, _)| *name == unit).filter(|_| !digits.is_empty()) else {
            let example = if digits.is_empty() || digits.len() > 9 { "64" } else { digits };
            return Err(format!(
                "a number of bytes, or text with KB, MB, GB, KiB, MiB or GiB, such as \"{example}{suggested_unit}\""
            ));
        };
        let size = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*bytes)).filter(|n| (min..=max).contains(n));
        size.and_then(|size| T::try_from(size).ok()).ok_or_else(|| match max {
            _ if max == i64::MAX as u64 => format!("a size of {min} bytes or more"),
            _ => format!("a size from {min} to {max} bytes"),
        })
    }
}

pub(super) fn duration(min: Duration, max: Duration) -> impl Fn(&DeValue<'_>) -> Read<Duration> {
    move |value| match value {
        DeValue::String(text) => duration_in(text.trim(), min, max),
        DeValue::Integer(number) => Err(with_unit(number.as_str())),
        _ => Err("a duration, such as \"500ms\", \"2s\", \"5m\" or \"1h\"".to_owned()),
    }
}

/// A duration from `min` to `max`, from text such as `30s`.
pub(super) fn duration_in(text: &str, min: Duration, max: Duration) -> Read<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    if unit.starts_with(['.', ',']) {
        return Err("a whole number and a smaller unit, such as \"1500ms\" for one and a half seconds".to_owned());
    }
    if unit.is_empty() && !digits.is_empty() {
        return Err(with_unit(digits));
    }
    let Some((_, milliseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("one whole number with the unit ms, s, m or h, such as \"500ms\" or \"90s\"".to_owned());
    };
    if digits.is_empty() {
        return Err(format!("a number before the unit, such as \"2{unit}\""));
    }
    let duration = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*milliseconds)).map(Duration::from_millis);
    let in_range = duration.filter(|duration| (min..=max).contains(duration));
    in_range.ok_or_else(|| format!("a duration from {} to {}", written(min), written(max)))
}

fn with_unit(number: &str) -> String {
    match number.len() {
        ..=3 => format!("a duration with its unit, such as \"{number}s\""),
        // nginx takes seconds, HAProxy milliseconds.
        4..=7 => format!("a duration with its unit: \"{number}s\", as nginx takes it, or \"{number}ms\""),
        _ => "a duration with its unit, such as \"2s\"".to_owned(),
    }
}

/// A duration in the notation of the file.
fn written(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let fitting = UNITS.iter().rev().find(|(_, unit)| milliseconds >= *unit && milliseconds % unit == 0);
    fitting.map_or("0s".to_owned(), |(name, unit)| format!("{}{name}", milliseconds / unit))
}

/// A token (RFC 9110 §5.6.2); `None`: an empty text.
pub(super) fn token(value: &DeValue<'_>) -> Read<Option<Box<str>>> {
    match value.as_str() {
        Some("") => Ok(None),
        Some(token) if is_token(token.as_bytes()) => Ok(Some(token.into())),
        _ => Err("a name of letters, digits and !#$%&'*+-.^_`|~, such as \"edge-1\", or \"\" for none".to_owned()),
    }
}

pub(super) fn choice<T: Copy>(choices: &[(&str, T)]) -> impl Fn(&DeValue<'_>) -> Read<T> {
    move |value| {
        let written = value.as_str().unwrap_or_default();
        let chosen = choices.iter().find(|(name, _)| *name == written).map(|(_, choice)| *choice);
        chosen.ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            let quoted: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
            match did_you_mean(written, &names).as_str() {
                "" => format!("one of {}", quoted.join(", ")),
                hint => format!("one of {} ({})", quoted.join(", "), hint.trim_end()),
            }
        })
    }
}

pub(super) fn algorithm(value: &DeValue<'_>) -> Read<Algorithm> {
    let algorithms = Algorithm::ALL.map(|algorithm| (algorithm.as_str(), algorithm));
    choice(&algorithms)(value).map_err(|fix| match Algorithm::meant(value.as_str().unwrap_or_default()) {
        Some(meant) if !fix.contains("did you mean") => format!("{fix} (did you mean \"{meant}\"?)"),
        _ => fix,
    })
}

/// A status that counts as a failure, or a range of them as text.
pub(super) fn failing_statuses(value: &DeValue<'_>) -> Read<Vec<u16>> {
    let codes = match value {
        DeValue::String(text) => StatusRanges::parse(text).map(|ranges| ranges.codes()),
        _ => whole(500, 599)(value).ok().map(|code| vec![code]),
    };
    let codes = codes.filter(|codes| codes.iter().all(|code| (500..=599).contains(code)));
    codes.ok_or_else(|| "codes from 500 to 599, such as [502, 503] or \"500-599\"".to_owned())
}

pub(super) fn flag(value: &DeValue<'_>) -> Read<bool> {
    value.as_bool().ok_or_else(|| "true or false, without quotes".to_owned())
}

/// A path, relative to the configuration's folder; none when empty.
pub(super) fn path(base: &Path, value: &DeValue<'_>) -> Read<Option<PathBuf>> {
    let text = value.as_str().filter(|text| !text.contains('\0')).ok_or("the path of a file in quotes")?;
    Ok((!text.is_empty()).then(|| base.join(text)))
}

pub(super) fn socket_address(value: &DeValue<'_>) -> Read<SocketAddr> {
    let address = value.as_str().and_then(|text| text.parse().ok());
    address.ok_or_else(|| "IP:PORT, such as \"0.0.0.0:8888\", \"127.0.0.1:8888\" or \"[::]:8888\"".to_owned())
}

/// A DNS server; the default port is 53.
pub(super) fn name_server(value: &DeValue<'_>) -> Read<SocketAddr> {
    const PORT: u16 = 53;
    let text = value.as_str().unwrap_or_default();
    let address = text.parse().ok().or_else(|| Some(SocketAddr::new(text.parse().ok()?, PORT)));
    address.filter(|address| address.port() != 0).ok_or_else(|| {
        "the address of a DNS server, such as \"10.0.0.2\", \"10.0.0.2:5353\" or \"[fd00::2]:53\"".to_owned()
    })
}

/// A network, or an address as a network.
pub(super) fn network(value: &DeValue<'_>) -> Read<IpNet> {
    network_in(value.as_str().unwrap_or_default())
}

pub(super) fn network_in(text: &str) -> Read<IpNet> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let network = network.ok_or("a network or an address, such as \"10.0.0.0/8\", \"fd00::/8\" or \"192.0.2.7\"")?;
    match network.trunc() {
        // It may stand for the one address, or for the network around it.
        whole if whole != network => {
            Err(format!("\"{whole}\" for the network, or \"{}\" for the address", network.addr()))
        }
        whole => Ok(whole),
    }
}

pub(super) fn backend_address(value: &DeValue<'_>) -> Read<BackendAddress> {
    let text = value.as_str().unwrap_or_default();
    text.parse().map_err(|_| match text.starts_with("unix:") {
        true => format!(
            "\"unix:\" and the whole path of a socket, of {MAX_UNIX_PATH_BYTES} bytes at most, such as \"unix:/run/app.sock\""
        ),
        false => backend_in_url(text).or_else(|| backend_with_parameters(text)).unwrap_or_else(|| {
            "HOST:PORT with a port from 1 to 65535, such as \"10.0.0.5:8080\", \"[::1]:8080\" or \"web1:8080\", the path of a Unix socket, such as \"unix:/run/app.sock\", or a service of DNS, such as \"srv:_http._tcp.example\"".to_owned()
        }),
    })
}

/// A suggestion for a backend written as a URL, as in nginx's `proxy_pass`.
fn backend_in_url(text: &str) -> Option<String> {
    let (rest, port, is_tls) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
        (Some(rest), _) => (rest, 80, false),
        (_, Some(rest)) => (rest, 443, true),
        _ => return None,
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let address = [authority.to_owned(), format!("{authority}:{port}")];
    let address = address.into_iter().find(|address| address.parse::<BackendAddress>().is_ok())?;
    let tls = if is_tls { ", and tls = true in [[pool]]" } else { ", without \"http://\"" };
    let path = match path {
        "" | "/" => String::new(),
        path => format!("; the path goes into rewrite = {{ prefix = \"{path}\" }} of a [[site.route]]"),
    };
    Some(format!("\"{address}\"{tls}{path}"))
}

/// A suggestion for a backend with parameters after its address, as in nginx's `server`.
fn backend_with_parameters(text: &str) -> Option<String> {
    let (address, parameters) = text.split_once(' ')?;
    address.parse::<BackendAddress>().ok()?;
    let mut table = format!("address = \"{address}\"");
    let mut others = Vec::new();
    for parameter in parameters.split_whitespace() {
        match parameter.split_once('=').unwrap_or((parameter, "")) {
            ("weight", number) => table += &format!(", weight = {number}"),
            ("max_conns" | "maxconn", number) => table += &format!(", max_connections = {number}"),
            ("down", _) => table += ", state = \"down\"",
            ("max_fails" | "fail_timeout", _) => others.push(format!("{parameter} goes into [pool.ejection]")),
            _ => others.push(format!("{parameter} is not a backend setting")),
        }
    }
    let others = others.iter().map(|other| format!("; {other}")).collect::<String>();
    Some(format!("{{ {table} }}{others}"))
}

/// The address of a listener. The path of a Unix socket is relative to the file.
pub(super) fn listener_address(base: &Path, value: &DeValue<'_>) -> Read<SocketAddress> {
    let Some(path) = value.as_str().and_then(|text| text.strip_prefix(UNIX)) else {
        return socket_address(value)
            .map(SocketAddress::Ip)
            .map_err(|e| format!("{e}, or \"unix:/run/evenkeel.sock\""));
    };
    if path.is_empty() || path.ends_with('/') || path.chars().any(char::is_control) {
        return Err("the path of a Unix socket, such as \"unix:/run/evenkeel.sock\"".to_owned());
    }
    let path = std::path::absolute(base.join(path)).map_err(|e| format!("the path of a Unix socket: {e}"))?;
    match path.as_os_str().len() {
        0..=MAX_UNIX_PATH_BYTES => Ok(SocketAddress::Unix(path.into())),
        length => Err(format!(
            "a path of {MAX_UNIX_PATH_BYTES} bytes at most, which is all that the system has room for; {} has {length}",
            path.display()
        )),
    }
}

/// Permission bits, in octal digits.
pub(super) fn mode(value: &DeValue<'_>) -> Read<u32> {
    let digits = value.as_str().filter(|text| (3..=4).contains(&text.len()));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok()).filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "permission bits as octal digits in quotes, such as \"0660\"".to_owned())
}

/// A user, optionally with its group.
pub(super) fn user(value: &DeValue<'_>) -> Read<UserAndGroup> {
    let read = UserAndGroup::parse(value.as_str().unwrap_or_default()).filter(|read| read.user.is_some());
    read.ok_or_else(|| "a user, such as \"www-data\", or a user and a group, such as \"www-data:adm\"".to_owned())
}

pub(super) fn user_and_group(value: &DeValue<'_>) -> Read<UserAndGroup> {
    let read = UserAndGroup::parse(value.as_str().unwrap_or_default());
    read.ok_or_else(|| "a user, a group or both, such as \"www-data\", \":adm\" or \"www-data:adm\"".to_owned())
}

/// A network of peers, or `unix:` for peers on Unix sockets, which is `None`.
pub(super) fn peer_network(value: &DeValue<'_>) -> Read<Option<IpNet>> {
    match value.as_str() {
        Some(UNIX) => Ok(None),
        _ => network(value).map(Some).map_err(|e| format!("{e}, or \"unix:\"")),
    }
}

/// An address without a port; none when empty.
pub(super) fn ip_address(value: &DeValue<'_>) -> Read<Option<IpAddr>> {
    match value.as_str() {
        Some("") => Ok(None),
        Some(text) if let Ok(address) = text.parse() => Ok(Some(address)),
        _ => Err("an IP address without a port, such as \"10.0.0.9\" or \"fd00::9\"".to_owned()),
    }
}

/// A name that a certificate can have; none when empty.
pub(super) fn certificate_name(value: &DeValue<'_>) -> Read<Option<Box<str>>> {
    match value.as_str() {
        Some("") => Ok(None),
        Some(name) if ServerName::try_from(name).is_ok() => Ok(Some(name.into())),
        _ => Err("the name or the IP address that certificates are for, such as \"app.internal\"".to_owned()),
    }
}

pub(super) fn weight(value: &DeValue<'_>) -> Read<Weight> {
    let number: u32 = whole(0, u32::MAX.into())(value).unwrap_or(u32::MAX);
    Weight::new(number).ok_or_else(|| match number {
        0 => format!("a whole number from 1 to {}; to send a backend nothing write state = \"down\"", Weight::MAX),
        _ => format!("a whole number from 1 to {}", Weight::MAX),
    })
}

pub(super) fn pool_name(value: &DeValue<'_>) -> Read<PoolName> {
    let name = value.as_str().and_then(PoolName::new);
    name.ok_or_else(|| match value.as_str().unwrap_or_default() {
        text if text.contains("://") => {
            "the name of a [[pool]], such as \"app\", whose backends have the addresses; a path goes into rewrite = { prefix = \"/path\" }".to_owned()
        }
        text if text.starts_with('$') => {
            format!("the name of a [[pool]], or pool_from = {{ value = \"{text}\", pools = [\"app\"] }} in place of pool")
        }
        _ => "a name of 1 to 64 letters, digits, \"-\", \"_\" and \".\"".to_owned(),
    })
}

pub(super) fn listener_name(value: &DeValue<'_>) -> Read<ListenerName> {
    let name = value.as_str().and_then(ListenerName::new);
    name.ok_or_else(|| "a name of 1 to 64 characters without spaces, such as \"plain\"".to_owned())
}

pub(super) fn text(value: &DeValue<'_>) -> Read<String> {
    value.as_str().map(str::to_owned).ok_or_else(|| "text in quotes".to_owned())
}

pub(super) fn number(value: &DeValue<'_>) -> Read<f64> {
    let text = match value {
        DeValue::Integer(number) => Some(number.as_str()),
        DeValue::Float(number) => Some(number.as_str()),
        _ => None,
    };
    text.and_then(|text| text.parse().ok()).ok_or_else(|| "a number, such as 5 or 0.5".to_owned())
}

/// A share, 0 to 1.
pub(super) fn share(value: &DeValue<'_>) -> Read<Share> {
    number(value).ok().and_then(Share::new).ok_or_else(|| "a number from 0 to 1, such as 0.01".to_owned())
}

pub(super) fn site_name(value: &DeValue<'_>) -> Read<String> {
    let is_name = |name: &&str| (1..=128).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
    let name = value.as_str().filter(is_name);
    name.map(str::to_owned).ok_or_else(|| "a name of 1 to 128 characters without spaces, such as \"shop\"".to_owned())
}

/// The name of a route, which must not look like a path.
pub(super) fn route_name(value: &DeValue<'_>) -> Read<String> {
    let name = site_name(value).ok().filter(|name| !name.starts_with(['/', '$']));
    name.ok_or_else(|| {
        "a name of 1 to 128 characters without spaces that begins with a letter, such as \"fallback\"".to_owned()
    })
}

pub(super) fn regex(value: &DeValue<'_>) -> Read<Pattern> {
    match value.as_str() {
        Some(text) => regex_in(text),
        None => Err("a regular expression in quotes, such as '^/u/(?<id>[0-9]+)$'".to_owned()),
    }
}

pub(super) fn regex_in(text: &str) -> Read<Pattern> {
    if text.starts_with(['~', '*']) {
        return Err("the expression alone, without nginx's \"~\" and \"~*\"; (?i) at its beginning ignores case, and a \"~\" itself is \\~".to_owned());
    }
    Pattern::parse(text, Case::Sensitive).map_err(|message| format!("another one: {message}"))
}

/// A host of a site.
pub(super) fn site_host(value: &DeValue<'_>) -> Read<HostPattern> {
    let text = value.as_str().unwrap_or_default();
    if let Some(regex) = text.strip_prefix('~') {
        return regex_in(regex).map(HostPattern::Regex);
    }
    if let Some(labels) = text.strip_suffix(".*")
        && let Some(HostPattern::Exact(labels)) = HostPattern::parse(labels)
    {
        return Ok(HostPattern::Starting(labels));
    }
    host_pattern(value).map_err(|fix| match text {
        "*" | "_" => "\"\" for any host".to_owned(),
        text if text.starts_with('.') => {
            format!("\"{}\" and \"*{text}\", for itself and the names below it", &text[1..])
        }
        _ => fix,
    })
}

/// A path prefix by bytes: its last segment may be incomplete.
pub(super) fn byte_prefix(value: &DeValue<'_>) -> Read<String> {
    let text = value.as_str().unwrap_or_default();
    let folder = text.rfind('/').map_or("", |slash| &text[..=slash]);
    let is_prefix = PathPrefix::parse(folder).is_some() && PathPrefix::parse(&format!("{text}x")).is_some();
    is_prefix.then(|| text.to_owned()).ok_or_else(|| {
        "the beginning of a path as routes see it, decoded and without \"//\", \".\" and \"..\", such as \"/static\"".to_owned()
    })
}

pub(super) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

pub(super) fn redirect_status(value: &DeValue<'_>) -> Read<u16> {
    let status = whole(100, 599)(value).ok().filter(|status| is_redirect(*status));
    status.ok_or_else(|| {
        "301, 302, 303, 307 or 308 (301 and 308 are kept by browsers; 307 and 308 keep the method)".to_owned()
    })
}

/// A token, as the name of a field.
pub(super) fn field_token(name: &str) -> Read<String> {
    let is_name = is_token(name.as_bytes());
    is_name.then(|| name.to_owned()).ok_or_else(|| "the name of a field, such as \"X-Robots-Tag\"".to_owned())
}

pub(super) fn method(value: &DeValue<'_>) -> Read<String> {
    let methods = MethodSet::new(value.as_str());
    match methods {
        Ok(methods) if value.is_str() => Ok(methods.iter().collect()),
        _ => Err("a method in capitals, such as \"GET\"".to_owned()),
    }
}

/// Standard output or a file; none when empty.
pub(super) fn log_file(base: &Path, value: &DeValue<'_>) -> Read<Option<AccessLogFile>> {
    match value.as_str() {
        Some("stdout") => Ok(Some(AccessLogFile::Stdout)),
        _ => Ok(path(base, value)?.map(AccessLogFile::Path)),
    }
}

pub(super) fn host_pattern(value: &DeValue<'_>) -> Read<HostPattern> {
    let text = value.as_str();
    text.and_then(HostPattern::parse).ok_or_else(|| match text.unwrap_or_default() {
        "*" | "_" => "host = \"\" for any host".to_owned(),
        text if !text.is_ascii() => {
            "the name in ASCII, as browsers send it (punycode, such as \"xn--bcher-kva.example\" for \"b\u{fc}cher.example\")"
                .to_owned()
        }
        text if text.starts_with('.') && HostPattern::parse(&text[1..]).is_some() => {
            format!("\"*{text}\" for the names below it, and another route with \"{}\" for itself", &text[1..])
        }
        text if text.ends_with('.') && HostPattern::parse(text.trim_end_matches('.')).is_some() => {
            format!("\"{}\", without the dot at the end", text.trim_end_matches('.'))
        }
        _ => "a name without scheme and port, such as \"example.com\" or \"*.example.com\", or \"\" for any".to_owned(),
    })
}

pub(super) fn path_prefix(value: &DeValue<'_>) -> Read<PathPrefix> {
    let text = value.as_str().unwrap_or_default();
    let nginx = [
        ("= ", "exact = \""),
        ("^~ ", "over_regex = true and prefix = \""),
        ("~* ", "regex = '(?i)"),
        ("~ ", "regex = '"),
        ("@", "no path, and name = \"@"),
    ];
    if let Some((rest, fix)) = nginx.iter().find_map(|(mark, fix)| Some((text.strip_prefix(mark)?, fix))) {
        let end = if fix.ends_with(['"', '@']) { '"' } else { '\'' };
        return Err(format!("{fix}{rest}{end} in place of it"));
    }
    PathPrefix::parse(text).ok_or_else(|| match text.starts_with('/') && !text.contains(['?', '#', ' ']) {
        true => "the path as routes see it, decoded and without \"//\", \".\" and \"..\", such as \"/a/b\" for \"/x/..//a%2Fb\""
            .to_owned(),
        false => "a path that starts with \"/\", without query or spaces, such as \"/api\"".to_owned(),
    })
}

/// The `Path` of a cookie (RFC 6265 §4.1.1).
pub(super) fn cookie_path(value: &DeValue<'_>) -> Read<String> {
    let is_path = |text: &&str| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b';');
    let path = value.as_str().filter(is_path);
    path.map(str::to_owned)
        .ok_or_else(|| "a path that starts with \"/\", without \";\" and spaces, such as \"/shop\"".to_owned())
}

pub(super) fn request_target(value: &DeValue<'_>) -> Read<String> {
    let is_target = |text: &&str| text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && b != b'#');
    let target = value.as_str().filter(is_target);
    target.map(str::to_owned).ok_or_else(|| "a request target that starts with \"/\", such as \"/healthz\"".to_owned())
}

/// A `Host` field; none when empty.
pub(super) fn host_field(value: &DeValue<'_>) -> Read<Option<String>> {
    let text = value.as_str().ok_or("a host in quotes, such as \"example.com\"")?;
    let is_host =
        |host: &str| !matches!(HostPattern::parse(host), None | Some(HostPattern::Any | HostPattern::Below(_)));
    match text {
        "" => Ok(None),
        _ if is_host(text) || text.parse::<BackendAddress>().is_ok() => Ok(Some(text.to_owned())),
        _ => Err("a host with or without port, such as \"example.com\" or \"example.com:8080\", or \"\"".to_owned()),
    }
}

pub(super) fn status_ranges(value: &DeValue<'_>) -> Read<StatusRanges> {
    let ranges = value.as_str().and_then(StatusRanges::parse);
    ranges.ok_or_else(|| "codes from 100 to 599 in quotes, such as \"200\", \"200-399\" or \"200-299,304\"".to_owned())
}

/// A token of RFC 6265.
pub(super) fn request_id_field(value: &DeValue<'_>) -> Read<RequestIdField> {
    let error = || "the name of a field without another meaning here, such as \"X-Request-Id\", or \"\"".to_owned();
    value.as_str().and_then(RequestIdField::new).ok_or_else(error)
}

pub(super) fn cookie_name(value: &DeValue<'_>) -> Read<String> {
    let is_token_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let is_name = |text: &&str| (1..=128).contains(&text.len()) && text.bytes().all(is_token_byte);
    let name = value.as_str().filter(is_name);
    name.map(str::to_owned).ok_or_else(|| "a cookie's name of 1 to 128 letters, digits, \"-\" and \"_\"".to_owned())
}
