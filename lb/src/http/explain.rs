//! Explains what would happen to a request: how sites and routes match, and what a backend or the client would be sent.
//! It runs the code of real requests, without a connection.

use std::sync::Arc;

use bytes::Bytes;

use super::buffers::Buffers;
use super::facts::RequestFacts;
use super::request::{self, ForwardedFields, Request, RequestState};
use super::{Engine, configured_reply, response};
use crate::clock;
use crate::exchange::headers::{Peer, PeerAddress};
use crate::exchange::limits::ClientLimits;
use crate::exchange::refusal::{Refusal, RefusalFormat};
use crate::exchange::reply::Reply;
use crate::exchange::{Event, Exchange, Moment, Step};
use crate::http::h1::rewrite::Persistence;
use crate::message::Parsed;
use crate::site::{RouteId, Site};

/// A request and where it comes from.
#[derive(Debug)]
pub(crate) struct Question<'a> {
    /// As a client of HTTP/1.1 would send it.
    pub head: &'a [u8],
    pub client: PeerAddress,
    pub is_tls: bool,
}

/// What would happen to the request.
#[derive(Debug)]
pub(crate) struct Explanation {
    /// `None`: no site has its host, or it is refused before a site is chosen.
    pub site: Option<Arc<Site>>,
    /// The routes that the request visits, in order.
    pub visits: Vec<Visit>,
    pub end: End,
}

/// A route, and how it was chosen.
#[derive(Debug)]
pub(crate) struct Visit {
    pub route: RouteId,
    /// The path by which routes were searched, decoded and normalised; `None`: a jump named the route.
    pub path: Option<Vec<u8>>,
    /// The routes that match the path, in the order in which they were tried, and whether their conditions hold.
    pub asked: Vec<(RouteId, bool)>,
}

/// How the request ends, if backends respond as they should.
#[derive(Debug)]
pub(crate) enum End {
    /// This head is sent to a backend of this pool.
    Pool { name: String, head: Vec<u8> },
    /// The client is sent this response.
    Answer { refusal: Option<Refusal>, head: Vec<u8>, content: Bytes },
}

/// Explains what would happen to a request on this listener. The error says why the head is malformed.
pub(crate) fn explain(engine: &Engine, question: &Question<'_>) -> Result<Explanation, String> {
    let listener = engine.listener();
    let peer = Peer::new(question.client);
    let mut buffers = Buffers::default();
    buffers.from_client.extend_from_slice(question.head);
    match buffers.request.parse(&buffers.from_client, &listener.limits()) {
        Parsed::Complete(_) => {}
        Parsed::Partial => return Err("the head of the request does not end".to_owned()),
        Parsed::Rejected(reject) => return Err(format!("the request is refused: {}", reject.reason())),
    }
    let now = clock::now();
    let mut of = Request {
        engine,
        listener: &listener,
        peer: &peer,
        started: now,
        time: None,
        forwarded: ForwardedFields::default(),
        state: RequestState::default(),
        is_stream: false,
        is_connect: false,
        is_tls: question.is_tls,
        limits: ClientLimits::of_listener(&listener),
    };
    let mut exchange = match request::begin(&mut of, &mut buffers, question.is_tls, now) {
        Ok(start) => request::exchange(&mut of, &buffers, start),
        Err(refusal) => {
            of.forwarded.complete(engine, &peer, question.is_tls, &mut buffers.text);
            return Ok(Explanation { site: None, visits: Vec::new(), end: refused(&of, &mut buffers, refusal, None) });
        }
    };
    let site = Arc::clone(exchange.site());
    let mut visits = vec![visit(&of, &buffers, &exchange)];
    let at = Moment { now, client_waited: std::time::Duration::ZERO };
    let mut event = request::beginning(&of, &buffers, &exchange);
    let end = loop {
        event = match exchange.step(event, at) {
            Step::BufferBody => Event::BodyBuffered,
            Step::Jump(jump) => {
                let path_before = buffers.path.clone();
                let begun = request::jump(&mut of, &mut buffers, &mut exchange, jump, true);
                let mut visit = visit(&of, &buffers, &exchange);
                if buffers.path == path_before {
                    (visit.path, visit.asked) = (None, Vec::new());
                }
                visits.push(visit);
                begun
            }
            Step::Open(_) | Step::Queue(_) => break to_backend(&of, &mut buffers, &exchange),
            // The health of backends is not known here.
            Step::Refuse(Refusal::NoBackend) if exchange.pool().is_some() => {
                break to_backend(&of, &mut buffers, &exchange);
            }
            Step::Refuse(refusal) => break refused(&of, &mut buffers, refusal, Some(&exchange)),
            Step::Reply(configured, status) => {
                let facts = RequestFacts::of(&of, &buffers, &exchange);
                let form = RefusalFormat::asked(buffers.request.fields().named(&buffers.from_client, b"accept"));
                break match configured_reply::reply(configured, status, &exchange, &facts, form) {
                    Ok(reply) => answer(&of, &mut buffers, reply, exchange.outcome().refusal, Some(&exchange)),
                    Err(refusal) => {
                        exchange.reply_failed(refusal);
                        refused(&of, &mut buffers, refusal, Some(&exchange))
                    }
                };
            }
            Step::Pass | Step::End => break refused(&of, &mut buffers, Refusal::Internal, Some(&exchange)),
            Step::Wait(never) | Step::Sub(never) | Step::Spawn(never) => match never {},
        };
    };
    Ok(Explanation { site: Some(site), visits, end })
}

/// The route that the exchange has reached, and the others that were tried.
fn visit(of: &Request<'_>, buffers: &Buffers, exchange: &Exchange) -> Visit {
    let site = exchange.site();
    let facts = RequestFacts { matched: Some((site, RouteId::FALLBACK)), ..RequestFacts::of(of, buffers, exchange) };
    let mut asked = Vec::new();
    site.search(facts.path, |id, route| {
        let holds = route.holds(&facts);
        asked.push((id, holds));
        holds
    });
    Visit { route: exchange.route_id(), path: Some(facts.path.to_vec()), asked }
}

fn to_backend(of: &Request<'_>, buffers: &mut Buffers, exchange: &Exchange) -> End {
    buffers.to_backend.clear();
    let websocket = request::asks_for_websocket(buffers) && !exchange.is_page();
    if request::write_head(of, buffers, exchange, websocket).is_err() {
        return refused(of, buffers, Refusal::Internal, Some(exchange));
    }
    let name = exchange.pool().map(|pool| pool.name.to_string()).unwrap_or_default();
    End::Pool { name, head: std::mem::take(&mut buffers.to_backend) }
}

fn refused(of: &Request<'_>, buffers: &mut Buffers, refusal: Refusal, exchange: Option<&Exchange>) -> End {
    let (reply, _) = of.refusal(buffers, refusal, exchange);
    answer(of, buffers, reply, Some(refusal), exchange)
}

fn answer(
    of: &Request<'_>,
    buffers: &mut Buffers,
    reply: Reply,
    refusal: Option<Refusal>,
    exchange: Option<&Exchange>,
) -> End {
    let content = buffers.take_reply(reply);
    buffers.to_client.clear();
    response::write_head(of, buffers, Persistence::KeepAlive, exchange, false);
    End::Answer { refusal, head: std::mem::take(&mut buffers.to_client), content }
}
