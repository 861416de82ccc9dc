//! The head of a response as the client gets it, and the fields of it that logs need.

use super::body::ResponseBody;
use super::buffers::Buffers;
use super::facts::RequestFacts;
use super::fields::{self, Changes};
use super::request::{Request, StatusFields};
use crate::config::site::{AccessLogRule, LogLine, Rules};
use crate::date;
use crate::exchange::Exchange;
use crate::http::h1::rewrite::{self, Change, Edit, FieldName, FieldValue, Persistence, ResponsePlan};
use crate::message::Method;
use crate::message::framing::Framing;
use crate::message::name::Name;
use crate::site::RouteId;
use crate::snapshot::Snapshot;
use crate::value::Presence;
use crate::value::table::Tables;
use crate::value::variable::Variable;

/// The fields of the replaced answer that belong to its status, whether it came from a backend or from us.
pub(super) fn of_status(buffers: &Buffers, exchange: &Exchange, facts: &RequestFacts<'_>) -> StatusFields {
    let outcome = exchange.outcome();
    match (outcome.refusal, outcome.backend_status) {
        (Some(refusal), _) => {
            let seconds = refusal.retry_after().map(|seconds| ("Retry-After", seconds.to_string().into_bytes()));
            let methods = refusal.allow().map(|methods| ("Allow", methods.as_bytes().to_vec()));
            StatusFields { status: refusal.status(), fields: seconds.into_iter().chain(methods).collect() }
        }
        (None, Some(status)) => {
            let facts = RequestFacts { response: Some((&buffers.response, &buffers.from_backend)), ..*facts };
            StatusFields {
                status,
                fields: exchange.rules().map_or_else(Vec::new, |rules| fields::of_status(status, rules, &facts)),
            }
        }
        (None, None) => StatusFields::default(),
    }
}

/// The rules and facts for a request without a route: those of the default site.
pub(super) fn without_route<'a>(
    of: &'a Request<'a>,
    buffers: &'a Buffers,
    snapshot: &'a Snapshot,
) -> Option<(&'a Rules, RequestFacts<'a>)> {
    let site = snapshot.sites.site(of.engine.place_in(&snapshot.sites), "")?;
    let facts = RequestFacts {
        of,
        head: &buffers.request,
        from_client: &buffers.from_client,
        text: &buffers.text,
        path: b"/",
        target: b"",
        tables: &snapshot.config.values,
        matched: Some((site, RouteId::FALLBACK)),
        exchange: None,
        response: None,
        rewrite: None,
        ended: None,
        noted: &buffers.noted,
    };
    Some((site.rules(RouteId::FALLBACK), facts))
}

/// Writes the response head for the client. Returns how the content is sent, and whether the connection is kept alive.
/// `is_from_backend`: the response came from a backend.
pub(super) fn write_head(
    of: &Request<'_>,
    buffers: &mut Buffers,
    persistence: Persistence,
    exchange: Option<&Exchange>,
    is_from_backend: bool,
) -> (ResponseBody, bool) {
    let cookie = exchange.filter(|_| is_from_backend).and_then(Exchange::set_cookie);
    let cookie = cookie.as_ref().and_then(|cookie| FieldValue::new(cookie.as_bytes()));
    let cookie = cookie.map(|cookie| Change { name: FieldName::known(Name::SetCookie), edit: Edit::Add(cookie) });
    let id = of.forwarded.named_id(&buffers.text);
    let changes = [cookie.or(id), id.filter(|_| cookie.is_some())];
    let changes = changes.map(|change| change.unwrap_or(Change::NOTHING));
    let changes = &changes[..usize::from(id.is_some()) + usize::from(cookie.is_some())];
    let date = buffers.response.fields().value(&buffers.from_backend, Name::Date).is_none().then(date::now);
    let mut plan = ResponsePlan::new(&buffers.response, buffers.request.version(), persistence, changes);
    plan.lines = of.forwarded.id_lines(&buffers.text);
    plan.date = date.as_ref().and_then(|date| FieldValue::new(date));
    let (framing, keeps) = (plan.framing, plan.persistence == Persistence::KeepAlive);
    let body = ResponseBody::new(buffers.response.framing(), framing);
    let has_route = exchange.is_some();
    let mut body = body;
    if has_route && of.state.tables.is_none() {
        rewrite::response(&buffers.response, &buffers.from_backend, &plan, &mut buffers.to_client);
    } else {
        if let Some(exchange) = exchange.filter(|exchange| exchange.is_page())
            && let Some(framing) = framing_of_page(buffers, exchange)
        {
            plan.framing = framing;
            body = ResponseBody::new(buffers.response.framing(), framing);
        }
        let mut out = std::mem::take(&mut buffers.to_client);
        let start = out.len();
        write_changed_head(of, buffers, plan, exchange, is_from_backend, &mut out);
        match exchange {
            Some(exchange) => {
                if let Some(logs) = exchange.rules().and_then(|rules| rules.access_log.as_deref()) {
                    note_fields(logs, of.tables(), is_from_backend, &out[start..], buffers);
                }
            }
            None => note_fields_without_route(of, &out[start..], buffers),
        }
        buffers.to_client = out;
    }
    (body, keeps)
}

/// The framing of an error page without content, such as a 204, when its new status requires some.
#[cold]
fn framing_of_page(buffers: &Buffers, exchange: &Exchange) -> Option<Framing> {
    let status = exchange.outcome().status;
    let lacks_content = matches!(buffers.response.status(), 204 | 304) && !matches!(status, 204 | 304);
    (lacks_content && buffers.request.method() != Method::Head).then_some(Framing::Length(0))
}

/// As [`note_fields`], for the logs of the default site.
#[cold]
fn note_fields_without_route(of: &Request<'_>, head: &[u8], buffers: &mut Buffers) {
    let snapshot = of.engine.control.snapshot();
    let site = snapshot.sites.site(of.engine.place_in(&snapshot.sites), "");
    if let Some(logs) = site.and_then(|site| site.rules(RouteId::FALLBACK).access_log.as_deref()) {
        note_fields(logs, &snapshot.config.values, false, head, buffers);
    }
}

/// Keeps the response fields that the logs need: the head is gone when they are written. `head` is as sent to the
/// client.
#[cold]
fn note_fields(logs: &[AccessLogRule], tables: &Tables, is_from_backend: bool, head: &[u8], buffers: &mut Buffers) {
    let Buffers { response, from_backend, noted, .. } = buffers;
    let mut note = |variable: &Variable| {
        let mut text = Vec::new();
        let presence = match variable {
            Variable::BackendField(key) if is_from_backend => {
                key.write(response.fields().iter(from_backend), &mut text)
            }
            Variable::AnswerField(key) => key.write(lines(head), &mut text),
            _ => return,
        };
        if presence == Presence::Present && noted.iter().all(|(known, _)| known != variable) {
            noted.push((variable.clone(), text));
        }
    };
    for log in logs {
        if let LogLine::Own(line) = &log.format {
            line.each_asked(tables, &mut note);
        }
        if let Some(when) = &log.when {
            when.each_asked(tables, &mut note);
        }
    }
}

/// The fields of a serialized head.
fn lines(head: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    head.split(|&byte| byte == b'\n').skip(1).filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((&line[..colon], line[colon + 1..].trim_ascii()))
    })
}

/// Writes the head with the changes of the route's rules, or of the default site's without a route.
#[inline(never)]
fn write_changed_head(
    of: &Request<'_>,
    buffers: &Buffers,
    mut plan: ResponsePlan<'_>,
    exchange: Option<&Exchange>,
    is_from_backend: bool,
    out: &mut Vec<u8>,
) {
    let (response, from_backend) = (&buffers.response, &*buffers.from_backend);
    let status = exchange.map_or(response.status(), |exchange| exchange.outcome().status);
    if is_from_backend {
        plan.status = Some(status);
    }
    let snapshot = exchange.is_none().then(|| of.engine.control.snapshot());
    let changed = |rules: &&Rules| !fields::leave_unchanged(rules, response, from_backend, is_from_backend);
    let found = match exchange {
        Some(exchange) => {
            exchange.rules().filter(changed).map(|rules| (rules, RequestFacts::of(of, buffers, exchange)))
        }
        None => snapshot.as_ref().filter(|_| !of.engine.is_revoked()).and_then(|s| without_route(of, buffers, s)),
    };
    let no_rules;
    let (rules, facts) = match (found, exchange) {
        (Some(found), _) => found,
        (None, Some(exchange)) if exchange.is_page() => {
            no_rules = Rules::default();
            (&no_rules, RequestFacts::of(of, buffers, exchange))
        }
        _ => return rewrite::response(response, from_backend, &plan, out),
    };
    let facts = RequestFacts { response: Some((response, from_backend)), ..facts };
    // Cookie rules apply to the backend's cookies, not to the sticky cookie.
    let (cookies, id) =
        plan.changes.split_at(plan.changes.partition_point(|change| matches!(change.edit, Edit::Add(_))));
    let (changes, lines) = Changes::made(id, plan.lines, |changes| {
        if is_from_backend {
            changes.locations(rules, &facts);
            changes.cookies(&rules.cookies, &facts);
        }
        for change in cookies {
            if let Edit::Add(cookie) = change.edit {
                changes.add(change.name, cookie.get());
            }
        }
        if exchange.is_some_and(Exchange::is_page) {
            changes.page(&of.state.status_fields, status, &facts);
        }
        if let Some(preset) = rules.preset {
            changes.preset(preset, of.forwarded.proto() == "https");
        }
        if let Some(cors) = &rules.cors {
            changes.cors(cors, &facts);
        }
        changes.edit(&rules.response_headers, Some(status), &facts);
    });
    changes.list(|changes| {
        rewrite::response(response, from_backend, &ResponsePlan { changes, lines, ..plan }, out);
    });
}
