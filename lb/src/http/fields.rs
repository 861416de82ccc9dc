//! Changes to header fields from the configuration: edits, presets, CORS, and rewriting of a backend's `Location`,
//! `Refresh` and `Set-Cookie`. Used only for routes with such rules.

use std::borrow::Cow;

use super::facts::RequestFacts;
use super::request::StatusFields;
use super::target;
use crate::config::SameSite;
use crate::config::site::{
    self, CookieRewrite, Cors, CorsHeaders, CorsOrigin, LocationRewrite, Replace, Rewrite, Rules,
};
use crate::http::h1::response::ResponseHead;
use crate::http::h1::rewrite::{Change, Edit, FieldName, FieldValue, Lines};
use crate::message::ascii::{self, same_token};
use crate::message::name::Name;
use crate::message::{Method, authority};
use crate::value::{Facts, Presence, Value, VariableText};

/// Changes in the order in which they apply. Changes of one name are combined, so that at most one of them is not an
/// addition.
pub(super) struct Changes<'a>(Vec<Entry<'a>>);

/// This many changes need no heap memory when they are applied to a head.
const INLINE_CHANGES: usize = 8;

/// Most values fit.
const VALUE_CAPACITY: usize = 64;

struct Entry<'a> {
    name: FieldName<'a>,
    kind: Kind,
    value: Text<'a>,
}

/// A value without line breaks, so that it cannot end its field line.
enum Text<'a> {
    Borrowed(FieldValue<'a>),
    Owned(Vec<u8>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Remove,
    Set,
    Add,
    Append,
    SetIfMissing,
}

impl<'a> Changes<'a> {
    /// `first` plus the changes that `edit` makes. If `edit` changes a field that `lines` would generate, the generated
    /// lines become changes, too, and the returned lines are empty.
    pub(super) fn made(first: &[Change<'a>], lines: Lines<'a>, edit: impl Fn(&mut Self)) -> (Self, Lines<'a>) {
        let mut all = Self(Vec::new());
        first.iter().for_each(|change| all.make(*change));
        edit(&mut all);
        if !all.0.iter().any(|entry| lines.concern(entry.name)) {
            return (all, lines);
        }
        let mut all = Self(Vec::new());
        lines.changes().chain(first.iter().copied()).for_each(|change| all.make(change));
        edit(&mut all);
        (all, Lines::default())
    }

    fn make(&mut self, Change { name, edit }: Change<'a>) {
        let (kind, value) = match edit {
            Edit::Remove => (Kind::Remove, &b""[..]),
            Edit::Set(value) => (Kind::Set, value.get()),
            Edit::Add(value) => (Kind::Add, value.get()),
            Edit::Append(value) => (Kind::Append, value.get()),
            Edit::SetIfMissing(value) => (Kind::SetIfMissing, value.get()),
        };
        self.push(name, kind, value.into());
    }

    /// Passes the changes to `take`, in the form that the writer of heads needs.
    pub(super) fn list<R>(&self, take: impl FnOnce(&[Change<'_>]) -> R) -> R {
        let all = self.0.iter().filter_map(Entry::change);
        if self.0.len() > INLINE_CHANGES {
            return take(&all.collect::<Vec<_>>());
        }
        let mut few = [Change::NOTHING; INLINE_CHANGES];
        let mut count = 0;
        for (slot, change) in few.iter_mut().zip(all) {
            *slot = change;
            count += 1;
        }
        take(&few[..count])
    }

    /// Removes the fields of this name.
    pub(super) fn remove(&mut self, name: FieldName<'a>) {
        self.push(name, Kind::Remove, Cow::Borrowed(b""));
    }

    pub(super) fn add(&mut self, name: FieldName<'a>, value: impl Into<Cow<'a, [u8]>>) {
        self.push(name, Kind::Add, value.into());
    }

    fn set(&mut self, name: FieldName<'a>, value: impl Into<Cow<'a, [u8]>>) {
        self.push(name, Kind::Set, value.into());
    }

    /// Adds the configured edits for a response with `status`.
    pub(super) fn edit(&mut self, changes: &'a [site::FieldChange], status: Option<u16>, facts: &'a RequestFacts<'a>) {
        for change in changes {
            let is_for = |on: &crate::config::StatusRanges| status.is_some_and(|status| on.contains(status));
            if !change.on.as_ref().is_none_or(is_for) {
                continue;
            }
            let Some(name) = FieldName::of_token(change.name.as_bytes(), change.known) else { continue };
            let kind = match change.edit {
                site::Edit::Remove => Kind::Remove,
                site::Edit::Set => Kind::Set,
                site::Edit::Add => Kind::Add,
                site::Edit::Append => Kind::Append,
                site::Edit::SetIfMissing => Kind::SetIfMissing,
            };
            if kind == Kind::Remove {
                self.remove(name);
                continue;
            }
            match field_value(&change.value.value, facts) {
                Some(value) => self.push(name, kind, value),
                // A field that is set to an empty value is not sent.
                None if kind == Kind::Set => self.remove(name),
                None => {}
            }
        }
    }

    /// Adds the fields of the preset that the response lacks.
    pub(super) fn preset(&mut self, preset: site::Preset, is_https: bool) {
        for field in preset.fields().iter().filter(|field| is_https || !field.only_https) {
            if let Some(name) = FieldName::of_token(field.name.as_bytes(), Name::Other) {
                self.push(name, Kind::SetIfMissing, Cow::Borrowed(field.value.as_bytes()));
            }
        }
    }

    /// Replaces the backend's CORS fields by the configured ones.
    pub(super) fn cors(&mut self, cors: &'a Cors, facts: &RequestFacts<'a>) {
        for name in ["Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Access-Control-Expose-Headers"]
        {
            self.remove(cors_name(name));
        }
        let is_anybody = cors.origins.contains(&CorsOrigin::Any);
        if !is_anybody {
            // Caches must keep responses to different origins apart, also that to a request without an origin.
            self.push(FieldName::known(Name::Vary), Kind::Append, Cow::Borrowed(b"Origin"));
        }
        let Some(origin) =
            origin(facts).filter(|origin| is_anybody || cors.origins.iter().any(|one| allows(one, origin)))
        else {
            return;
        };
        self.set(cors_name("Access-Control-Allow-Origin"), if is_anybody { b"*" } else { origin });
        if cors.credentials {
            self.set(cors_name("Access-Control-Allow-Credentials"), &b"true"[..]);
        }
        if is_preflight(facts) {
            self.set(cors_name("Access-Control-Allow-Methods"), cors.methods.join(", ").into_bytes());
            match &cors.headers {
                CorsHeaders::These(names) if names.is_empty() => {}
                CorsHeaders::These(names) => {
                    self.set(cors_name("Access-Control-Allow-Headers"), names.join(", ").into_bytes());
                }
                CorsHeaders::Asked => {
                    let asked = asked_fields(facts);
                    if !asked.is_empty() {
                        self.set(cors_name("Access-Control-Allow-Headers"), asked);
                    }
                }
            }
            if let Some(age) = cors.max_age {
                self.set(cors_name("Access-Control-Max-Age"), age.as_secs().to_string().into_bytes());
            }
        } else if !cors.expose.is_empty() {
            self.set(cors_name("Access-Control-Expose-Headers"), cors.expose.join(", ").into_bytes());
        }
    }

    /// Adds the fields that the page's status needs, unless the page has them itself.
    #[cold]
    pub(super) fn page(&mut self, status_fields: &'a StatusFields, status: u16, facts: &RequestFacts<'_>) {
        let Some((page, buffer)) = facts.response else { return };
        if status != page.status() {
            // An error page is never partial content.
            self.remove(FieldName::known(Name::ContentRange));
        }
        for (name, value) in status_fields.fields.iter().filter(|_| status_fields.status == status) {
            let is_said = page.fields().named(buffer, name.as_bytes()).next().is_some();
            if let Some(name) = FieldName::new(name.as_bytes()).filter(|_| !is_said) {
                self.add(name, &**value);
            }
        }
    }

    /// Rewrites the URLs that a backend sends in `Location` and `Refresh` to those that the client has to request.
    pub(super) fn locations(&mut self, rules: &'a Rules, facts: &RequestFacts<'a>) {
        let Some((head, buffer)) = facts.response else { return };
        if let Some(location) = head.fields().value(buffer, Name::Location)
            && let Some(mapped) = mapped_location(location, rules, facts)
        {
            self.set(FieldName::known(Name::Location), mapped);
        }
        if let Some(refresh) = head.fields().value(buffer, Name::Refresh) {
            // `5; url=https://…`
            let lower = refresh.to_ascii_lowercase();
            if let Some(at) = lower.windows(4).position(|four| four == b"url=")
                && let Some(mapped) = mapped_location(&refresh[at + 4..], rules, facts)
            {
                self.set(FieldName::known(Name::Refresh), [&refresh[..at + 4], &mapped].concat());
            }
        }
    }

    /// Rewrites the cookies of a backend as configured.
    pub(super) fn cookies(&mut self, rewrite: &CookieRewrite, facts: &RequestFacts<'_>) {
        let Some((head, buffer)) = facts.response else { return };
        if head.fields().value(buffer, Name::SetCookie).is_none() || *rewrite == CookieRewrite::default() {
            return;
        }
        self.remove(FieldName::known(Name::SetCookie));
        for cookie in head.fields().values(buffer, Name::SetCookie) {
            self.add(FieldName::known(Name::SetCookie), mapped_cookie(cookie, rewrite, facts));
        }
    }

    /// A value with a line break is left out.
    fn push(&mut self, name: FieldName<'a>, mut kind: Kind, value: Cow<'a, [u8]>) {
        let value = match value {
            Cow::Borrowed(text) => FieldValue::new(text).map(Text::Borrowed),
            Cow::Owned(text) => FieldValue::new(&text).is_some().then_some(Text::Owned(text)),
        };
        let Some(value) = value else {
            if kind == Kind::Set {
                self.remove(name);
            }
            return;
        };
        let has_same = |entry: &Entry<'_>| entry.name.is_same(name);
        match kind {
            Kind::Remove | Kind::Set => self.0.retain(|entry| !has_same(entry)),
            Kind::Add => {}
            Kind::SetIfMissing => match self.0.iter_mut().find(|entry| has_same(entry)) {
                Some(Entry { kind: Kind::Remove, .. }) => kind = Kind::Add,
                Some(_) => return,
                None => {}
            },
            Kind::Append => match self.0.iter_mut().rfind(|entry| has_same(entry)) {
                Some(Entry { kind: Kind::Remove, .. }) => kind = Kind::Add,
                Some(before) if before.kind == Kind::SetIfMissing => {
                    before.kind = Kind::Append;
                    before.value = value;
                    return;
                }
                Some(before) => {
                    before.value = Text::Owned([before.value.get(), b", ", value.get()].concat());
                    return;
                }
                None => {}
            },
        }
        self.0.push(Entry { name, kind, value });
    }
}

impl Entry<'_> {
    fn change(&self) -> Option<Change<'_>> {
        let value = match &self.value {
            Text::Borrowed(value) => *value,
            Text::Owned(text) => FieldValue::new(text)?,
        };
        let edit = match self.kind {
            Kind::Remove => Edit::Remove,
            Kind::Set => Edit::Set(value),
            Kind::Add => Edit::Add(value),
            Kind::Append => Edit::Append(value),
            Kind::SetIfMissing => Edit::SetIfMissing(value),
        };
        Some(Change { name: self.name, edit })
    }
}

impl Text<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Self::Borrowed(value) => value.get(),
            Self::Owned(text) => text,
        }
    }
}

/// Whether the rules leave a response head unchanged, whatever the values of their variables are.
pub(super) fn leave_unchanged(rules: &Rules, head: &ResponseHead, buffer: &[u8], is_from_backend: bool) -> bool {
    let has = |name| head.fields().value(buffer, name).is_some();
    let may_be_mapped = is_from_backend && (has(Name::Location) || has(Name::Refresh) || has(Name::SetCookie));
    rules.response_headers.is_empty() && rules.preset.is_none() && rules.cors.is_none() && !may_be_mapped
}

/// The value of a field, borrowed if it is constant. `None` if it is missing.
fn field_value<'a>(value: &'a Value, facts: &'a RequestFacts<'a>) -> Option<Cow<'a, [u8]>> {
    let lies = match (value.as_constant(), value.as_variable()) {
        (Some(text), _) => Some(text),
        (_, Some(variable)) => match facts.find(variable) {
            VariableText::Missing => return None,
            VariableText::Here(text) => Some(text),
            VariableText::Made => None,
        },
        _ => None,
    };
    if let Some(text) = lies.map(ascii::trim) {
        return (!text.is_empty()).then_some(Cow::Borrowed(text));
    }
    let mut made = Vec::with_capacity(VALUE_CAPACITY);
    (value.write_field(facts, &mut made) == Presence::Present).then_some(Cow::Owned(made))
}

/// The configured `Host` for the backend, in place of the client's.
pub(super) fn host(rules: &Rules, facts: &RequestFacts<'_>) -> Option<Vec<u8>> {
    let value = rules.request_headers.host.as_ref()?;
    let mut host = Vec::new();
    let presence = value.write_field(facts, &mut host);
    (presence == Presence::Present && authority::parse(&host).is_some()).then_some(host)
}

/// Whether the request is a CORS preflight.
pub(super) fn is_preflight(facts: &RequestFacts<'_>) -> bool {
    facts.head.method() == Method::Options
        && origin(facts).is_some()
        && field(facts, b"access-control-request-method").is_some()
}

fn cors_name(name: &'static str) -> FieldName<'static> {
    // Each is a token, and not a field that only we may set.
    FieldName::new(name.as_bytes()).unwrap_or(FieldName::known(Name::Vary))
}

fn field<'a>(facts: &RequestFacts<'a>, name: &'a [u8]) -> Option<&'a [u8]> {
    facts.head.fields().named(facts.from_client, name).next()
}

/// The request's origin. A request with two origins, which no browser sends, counts as having none.
fn origin<'a>(facts: &RequestFacts<'a>) -> Option<&'a [u8]> {
    let mut origins = facts.head.fields().named(facts.from_client, b"origin");
    origins.next().filter(|_| origins.next().is_none())
}

/// The field names that a preflight requests. Malformed names are left out.
fn asked_fields(facts: &RequestFacts<'_>) -> Vec<u8> {
    let lists = facts.head.fields().named(facts.from_client, b"access-control-request-headers");
    let names = lists.flat_map(|list| list.split(|&byte| byte == b',')).map(ascii::trim);
    names.filter(|name| ascii::is_token(name)).collect::<Vec<_>>().join(&b", "[..])
}

/// The fields of a response that belong to its status (RFC 9110 §10.2.3, §11.6.1, §15.4, §15.5; RFC 6585 §4), as the
/// client would have got them. `Proxy-Authenticate` and `Upgrade` concern the connection to the backend only.
pub(super) fn of_status(status: u16, rules: &Rules, facts: &RequestFacts<'_>) -> Vec<(&'static str, Vec<u8>)> {
    let name = match status {
        300..=399 => "Location",
        401 => "WWW-Authenticate",
        405 => "Allow",
        413 | 429 | 503 => "Retry-After",
        416 => "Content-Range",
        _ => return Vec::new(),
    };
    let Some((head, buffer)) = facts.response else { return Vec::new() };
    let values = head.fields().named(buffer, name.as_bytes());
    let mapped = |value: &[u8]| match name {
        "Location" => mapped_location(value, rules, facts).unwrap_or_else(|| value.to_vec()),
        _ => value.to_vec(),
    };
    values.map(|value| (name, mapped(value))).collect()
}

/// Whether an origin is allowed. Browsers send it in lower case.
fn allows(allowed: &CorsOrigin, origin: &[u8]) -> bool {
    match allowed {
        CorsOrigin::Any => true,
        CorsOrigin::Exact(one) => one.as_bytes() == origin,
        CorsOrigin::Below { scheme, domain } => origin
            .strip_prefix(scheme.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"://"))
            .and_then(|rest| rest.strip_suffix(domain.as_bytes()))
            .and_then(|below| below.strip_suffix(b"."))
            .is_some_and(|below| {
                !below.is_empty() && below.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
            }),
        CorsOrigin::Regex(regex) => regex.is_match(origin),
    }
}

/// Rewrites a URL of the backend to the one that the client has to request; `None`: it stays unchanged.
fn mapped_location(location: &[u8], rules: &Rules, facts: &RequestFacts<'_>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    match &rules.location {
        LocationRewrite::Off => return None,
        LocationRewrite::Pairs(pairs) => {
            let rest = replaced(pairs, location, false, facts, &mut out)?;
            out.extend_from_slice(rest);
            target::keep_on_host(&mut out, 0);
            return Some(out);
        }
        LocationRewrite::Auto => {}
    }
    let is_absolute =
        |scheme: &[u8]| location.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    let Some(scheme) = [&b"http://"[..], b"https://"].into_iter().find(|scheme| is_absolute(scheme)) else {
        if !location.starts_with(b"/") || location.starts_with(b"//") {
            return None;
        }
        let (route, rest) = mapped_path(location, rules, facts)?;
        out.extend_from_slice(route);
        out.extend_from_slice(rest);
        target::keep_on_host(&mut out, 0);
        return Some(out);
    };
    let forwarded = &facts.of.forwarded;
    let own = forwarded.host(facts.text);
    let sent = host(rules, facts).map_or(Cow::Borrowed(own), Cow::Owned);
    let rest = &location[scheme.len()..];
    let path = rest.get(sent.len()..).filter(|_| rest[..sent.len()].eq_ignore_ascii_case(&sent))?;
    if sent.is_empty() || !matches!(path.first(), None | Some(b'/' | b'?' | b'#')) {
        return None;
    }
    let mapped = mapped_path(path, rules, facts);
    if sent.eq_ignore_ascii_case(own) {
        // The backend knows the client's host, so the scheme that it names is intended.
        mapped.as_ref()?;
        out.extend_from_slice(&location[..scheme.len() + sent.len()]);
    } else if own.is_empty() {
        // Without a host, the text after the scheme would be read as one: send the path alone.
    } else if scheme == b"https://" && forwarded.proto() != "https" {
        // The client's port belongs to the other scheme.
        let own = std::str::from_utf8(own).ok()?;
        out.extend_from_slice(scheme);
        out.extend_from_slice(authority::without_port(own).as_bytes());
    } else {
        out.extend_from_slice(forwarded.proto().as_bytes());
        out.extend_from_slice(b"://");
        out.extend_from_slice(own);
    }
    let (route, rest) = mapped.unwrap_or((b"", path));
    let start = out.len();
    out.extend_from_slice(route);
    out.extend_from_slice(rest);
    if start == 0 {
        target::keep_on_host(&mut out, 0);
    }
    Some(out)
}

/// Maps a path below the rewritten path back to one below the route's path.
fn mapped_path<'a>(path: &'a [u8], rules: &Rules, facts: &RequestFacts<'a>) -> Option<(&'a [u8], &'a [u8])> {
    let Some(Rewrite::Prefix { prefix }) = &rules.rewrite else { return None };
    let (site, route) = facts.matched?;
    let own = match &site.route_config(route)?.matcher {
        site::Matcher::Path(path) => path.as_str(),
        site::Matcher::Exact(path) | site::Matcher::Prefix(path) => path,
        site::Matcher::Regex(_) | site::Matcher::Named => return None,
    };
    let rest = path.strip_prefix(prefix.strip_suffix('/').unwrap_or(prefix).as_bytes())?;
    let own = match rest.first() {
        // Avoids a second slash between the two.
        Some(b'/') => own.strip_suffix('/').unwrap_or(own),
        None | Some(b'?' | b'#') => own,
        Some(_) => return None,
    };
    Some((own.as_bytes(), rest))
}

/// Appends the replacement of a prefix of `text`. Returns the rest of the text.
fn replaced<'t>(
    pairs: &[Replace],
    text: &'t [u8],
    is_whole: bool,
    facts: &RequestFacts<'_>,
    out: &mut Vec<u8>,
) -> Option<&'t [u8]> {
    let fits = |pair: &&Replace| match is_whole {
        true => text.eq_ignore_ascii_case(pair.from.strip_prefix('.').unwrap_or(&pair.from).as_bytes()),
        false => text.strip_prefix(pair.from.as_bytes()).is_some_and(|rest| ends_host(&pair.from, rest)),
    };
    let pair = pairs.iter().find(fits)?;
    if is_whole {
        pair.to.write(facts, out);
    } else {
        (pair.to.write_location(facts, out) == Presence::Present).then_some(())?;
    }
    Some(if is_whole { b"" } else { &text[pair.from.len()..] })
}

/// Whether the prefix ends at the end of a host, given the `rest` that follows: `http://a.example` is not a prefix of
/// `http://a.example.evil`.
fn ends_host(beginning: &str, rest: &[u8]) -> bool {
    let host = beginning.strip_prefix("//").or_else(|| Some(beginning.split_once("://")?.1));
    host.is_none_or(|host| host.contains(['/', '?', '#'])) || matches!(rest.first(), None | Some(b'/' | b'?' | b'#'))
}

/// Like [`replaced`], for whole path segments: `/app` is not a prefix of `/appx`.
fn mapped_cookie_path<'t>(
    pairs: &[Replace],
    path: &'t [u8],
    facts: &RequestFacts<'_>,
    out: &mut Vec<u8>,
) -> Option<&'t [u8]> {
    let rest = |pair: &Replace| path.strip_prefix(pair.from.strip_suffix('/').unwrap_or(&pair.from).as_bytes());
    let is_below = |rest: &[u8]| matches!(rest.first(), None | Some(b'/'));
    let (pair, rest) = pairs.iter().find_map(|pair| Some((pair, rest(pair).filter(|rest| is_below(rest))?)))?;
    (pair.to.write_location(facts, out) == Presence::Present).then_some(())?;
    Some(if out.ends_with(b"/") { rest.strip_prefix(b"/").unwrap_or(rest) } else { rest })
}

fn mapped_cookie(cookie: &[u8], rewrite: &CookieRewrite, facts: &RequestFacts<'_>) -> Vec<u8> {
    let mut attributes = cookie.split(|&byte| byte == b';').map(ascii::trim);
    let mut out = attributes.next().unwrap_or_default().to_vec();
    for attribute in attributes.filter(|attribute| !attribute.is_empty()) {
        let equals = attribute.iter().position(|&byte| byte == b'=').unwrap_or(attribute.len());
        let (name, value) = (ascii::trim(&attribute[..equals]), attribute.get(equals + 1..).map(ascii::trim));
        let is = |known: &[u8]| same_token(name, known) && name.len() == known.len();
        let dropped = is(b"secure") && rewrite.secure.is_some()
            || is(b"httponly") && rewrite.http_only.is_some()
            || is(b"samesite") && rewrite.same_site.is_some();
        if dropped {
            continue;
        }
        let mut made = Vec::new();
        let rest = match value {
            Some(value) if is(b"domain") => {
                let bare = value.strip_prefix(b".").unwrap_or(value);
                replaced(&rewrite.domain, bare, true, facts, &mut made)
            }
            Some(value) if is(b"path") => mapped_cookie_path(&rewrite.path, value, facts, &mut made),
            _ => None,
        };
        out.extend_from_slice(b"; ");
        match rest {
            Some(rest) => {
                made.extend_from_slice(rest);
                // Text from the client cannot begin another attribute.
                made.retain(|&byte| byte != b';');
                out.extend_from_slice(name);
                out.push(b'=');
                out.extend_from_slice(&made);
            }
            None => out.extend_from_slice(attribute),
        }
    }
    if rewrite.secure == Some(true) {
        out.extend_from_slice(b"; Secure");
    }
    if rewrite.http_only == Some(true) {
        out.extend_from_slice(b"; HttpOnly");
    }
    if let Some(same_site) = rewrite.same_site {
        out.extend_from_slice(match same_site {
            SameSite::Lax => b"; SameSite=Lax",
            SameSite::Strict => b"; SameSite=Strict",
            SameSite::None => b"; SameSite=None",
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::name::NameSet;

    #[test]
    fn changes_of_one_name_are_combined() {
        let name = || FieldName::new(b"X-A").expect("a name");
        let value = |text: &'static str| Cow::Borrowed(text.as_bytes());
        for (kinds, expected) in [
            (&[(Kind::Set, "a"), (Kind::Set, "b")][..], &["set b"][..]),
            (&[(Kind::Set, "a"), (Kind::Remove, "")], &["remove"]),
            (&[(Kind::Set, "a"), (Kind::Append, "b")], &["set a, b"]),
            (&[(Kind::Remove, ""), (Kind::Append, "b")], &["remove", "add b"]),
            (&[(Kind::Remove, ""), (Kind::SetIfMissing, "b")], &["remove", "add b"]),
            (&[(Kind::SetIfMissing, "a"), (Kind::Set, "b")], &["set b"]),
            (&[(Kind::Set, "a"), (Kind::SetIfMissing, "b")], &["set a"]),
            (&[(Kind::Set, "a"), (Kind::Add, "b"), (Kind::Add, "c")], &["set a", "add b", "add c"]),
            (&[(Kind::Append, "a"), (Kind::Append, "b")], &["append a, b"]),
            (&[(Kind::Set, "a\r\nX-B: c")], &["remove"]),
            (&[(Kind::Add, "a\nb")], &[]),
        ] {
            let mut changes = Changes(Vec::new());
            for (kind, text) in kinds {
                changes.push(name(), *kind, value(text));
            }
            assert_eq!(forwarded(&changes), *expected);
        }
        for count in [INLINE_CHANGES, INLINE_CHANGES + 1] {
            let mut changes = Changes(Vec::new());
            (0..count).for_each(|_| changes.push(name(), Kind::Add, value("a")));
            assert_eq!(forwarded(&changes), vec!["add a"; count]);
        }
    }

    #[test]
    fn configured_changes_apply_to_generated_fields() {
        let (real_ip, prefix, cdn_loop) = (Name::XRealIp, Name::XForwardedPrefix, Name::CdnLoop);
        let replaced = NameSet::of(&[real_ip, prefix]);
        let lines = Lines::new(b"X-Real-IP: 1\r\nCDN-Loop: me\r\n", replaced, NameSet::of(&[cdn_loop]));
        let made = |name, kind| {
            let (changes, left) = Changes::made(&[], lines, |changes| changes.push(name, kind, Cow::Borrowed(b"2")));
            (forwarded(&changes), left)
        };
        let other = FieldName::new(b"X-A").expect("a name");
        assert_eq!(made(other, Kind::Set), (vec!["set 2".to_owned()], lines), "they stay as they are");
        for (name, kind, expected) in [
            (real_ip, Kind::Append, ["remove", "set 1, 2", "add me"].as_slice()),
            (real_ip, Kind::Set, &["remove", "add me", "set 2"]),
            (real_ip, Kind::Remove, &["remove", "add me", "remove"]),
            (prefix, Kind::SetIfMissing, &["remove", "set 1", "add me", "add 2"]),
            (cdn_loop, Kind::Add, &["remove", "set 1", "add me", "add 2"]),
            (cdn_loop, Kind::Set, &["remove", "set 1", "set 2"]),
        ] {
            let (changes, left) = made(FieldName::known(name), kind);
            assert_eq!(
                (changes.as_slice(), left),
                (&*expected.iter().map(ToString::to_string).collect::<Vec<_>>(), Lines::default())
            );
        }
    }

    fn forwarded(changes: &Changes<'_>) -> Vec<String> {
        let one = |change: &Change<'_>| {
            let text = |value: FieldValue<'_>| String::from_utf8_lossy(value.get()).into_owned();
            match change.edit {
                Edit::Remove => "remove".to_owned(),
                Edit::Set(value) => format!("set {}", text(value)),
                Edit::Add(value) => format!("add {}", text(value)),
                Edit::Append(value) => format!("append {}", text(value)),
                Edit::SetIfMissing(value) => format!("default {}", text(value)),
            }
        };
        changes.list(|changes| changes.iter().map(one).collect())
    }

    #[test]
    fn an_origin_is_allowed_as_a_whole() {
        let below = CorsOrigin::Below { scheme: "https".to_owned(), domain: "shop.example".to_owned() };
        for (origin, is_allowed) in [
            ("https://a.shop.example", true),
            ("https://a.b.shop.example", true),
            ("https://shop.example", false),
            ("http://a.shop.example", false),
            ("https://evilshop.example", false),
            ("https://evil.example/.shop.example", false),
            ("https://evil@a.shop.example", false),
            ("https://a.shop.example.evil.example", false),
        ] {
            assert_eq!(allows(&below, origin.as_bytes()), is_allowed, "{origin}");
        }
        assert!(!allows(&CorsOrigin::Exact("https://a.example".to_owned()), b"https://a.example.evil"));
    }
}
