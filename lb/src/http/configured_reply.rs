//! Responses that are written in the configuration: a route's `respond` or `redirect`, answers to CORS preflights, and
//! error pages.

use bytes::Bytes;

use super::facts::RequestFacts;
use crate::config::site::{Page, Respond, Rules};
use crate::exchange::refusal::{Refusal, RefusalFormat, usual};
use crate::exchange::reply::Reply;
use crate::exchange::{ConfiguredReply, Exchange, Outcome};
use crate::site::Action;
use crate::value::{Presence, Value};

/// Builds the response that the exchange chose. The error is the refusal to send instead: a redirect without a host to
/// redirect to, or a head that would be too large.
pub(super) fn reply(
    configured: ConfiguredReply,
    status: u16,
    exchange: &Exchange,
    facts: &RequestFacts<'_>,
    form: RefusalFormat,
) -> Result<Reply, Refusal> {
    let reply = match configured {
        ConfiguredReply::Preflight => Ok(Reply::new(status)),
        ConfiguredReply::Page(index) => {
            let page = exchange.rules().and_then(|rules| rules.error_pages.get(index)).ok_or(Refusal::Internal)?;
            page_reply(&page.page, status, exchange.outcome().refusal, facts)
        }
        ConfiguredReply::Action => match &exchange.route().action {
            Action::Redirect { to, .. } => redirect(&to.to, status, facts),
            Action::Respond { with: Respond { body: Some(body), content_type, .. }, .. } => {
                Ok(text(body, content_type, status, facts))
            }
            Action::Respond { .. } if status >= 400 => Ok(usual(
                status,
                form,
                std::str::from_utf8(facts.of.forwarded.request_id(facts.text)).unwrap_or_default(),
            )),
            Action::Respond { .. } => Ok(Reply::new(status)),
            _ => Err(Refusal::Internal),
        },
    };
    reply.and_then(|reply| if reply.is_sendable() { Ok(reply) } else { Err(Refusal::Internal) })
}

/// The first error page of `rules` for a refusal before any route was found. Pages that need a backend are not used
/// here.
pub(super) fn page_for(rules: &Rules, refusal: Refusal, facts: &RequestFacts<'_>) -> Option<(Reply, u16)> {
    use crate::config::site::PageStatus;

    let error = refusal.status();
    let page = rules.error_pages.iter().find(|page| page.on.contains(error))?;
    let status = match (page.status, &page.page) {
        (PageStatus::Is(status), _) => status,
        (_, Page::Redirect(_)) => 302,
        (PageStatus::Keep, _) => error,
        (PageStatus::OfPage, _) => 200,
    };
    let outcome = Outcome { refusal: Some(refusal), status, ..Outcome::default() };
    let facts = RequestFacts { ended: Some((&outcome, 0)), ..*facts };
    let reply = page_reply(&page.page, status, Some(refusal), &facts).ok().filter(Reply::is_sendable)?;
    Some((reply, status))
}

/// The response of an error page that needs no backend.
fn page_reply(page: &Page, status: u16, refusal: Option<Refusal>, facts: &RequestFacts<'_>) -> Result<Reply, Refusal> {
    let mut reply = match page {
        Page::Text { text: body, content_type } => text(body, content_type, status, facts),
        Page::File { file, content_type } => {
            let mut reply = Reply::new(status);
            reply.content(&written(content_type, facts), Bytes::from_owner(std::sync::Arc::clone(&file.bytes)));
            reply
        }
        Page::Redirect(to) => redirect(to, status, facts)?,
        Page::Jump(_) => return Err(Refusal::Internal),
    };
    match refusal {
        Some(refusal) if refusal.status() == status => refusal.add_fields(&mut reply),
        Some(_) => reply.field(b"Cache-Control", b"no-store"),
        None => {}
    }
    Ok(reply)
}

fn text(body: &Value, content_type: &Value, status: u16, facts: &RequestFacts<'_>) -> Reply {
    let mut reply = Reply::new(status);
    reply.content(&written(content_type, facts), written(body, facts).into());
    reply
}

fn redirect(to: &Value, status: u16, facts: &RequestFacts<'_>) -> Result<Reply, Refusal> {
    let mut location = Vec::new();
    if to.write_location(facts, &mut location) == Presence::Missing {
        return Err(Refusal::Malformed);
    }
    let mut reply = Reply::new(status);
    reply.field(b"Location", &location);
    Ok(reply)
}

fn written(value: &Value, facts: &RequestFacts<'_>) -> Vec<u8> {
    let mut text = Vec::new();
    value.write(facts, &mut text);
    text
}
