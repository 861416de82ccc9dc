//! A filter of our own around Evenkeel's proxy: what a program does with requests beside balancing them. A callback that
//! Evenkeel has is passed on to it, or else the balancer does not see what happens; the others are free.

use std::os::fd::RawFd;

use async_trait::async_trait;
use bytes::Bytes;
use evenkeel::pingora::{Context, Proxy};
use pingora_core::prelude::{Error, ErrorType, HttpPeer, Result};
use pingora_core::protocols::Digest;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};

/// Lets clients in that have a key, and tells backends which one.
pub struct Filtered {
    pub proxy: Proxy,
}

/// Of one request: ours, and Evenkeel's within it.
#[derive(Default)]
pub struct FilterContext {
    key: Option<String>,
    evenkeel: Context,
}

#[async_trait]
impl ProxyHttp for Filtered {
    type CTX = FilterContext;

    fn new_ctx(&self) -> FilterContext {
        FilterContext::default()
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut FilterContext) -> Result<bool> {
        let key = session.req_header().headers.get("X-Api-Key").and_then(|key| key.to_str().ok());
        // The client's answer is 403. An `Ok(true)` would say that it has been sent already.
        let Some(key) = key else { return Error::e_explain(ErrorType::HTTPStatus(403), "no X-Api-Key") };
        ctx.key = Some(key.to_owned());
        self.proxy.request_filter(session, &mut ctx.evenkeel).await
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream_request: &mut RequestHeader,
        ctx: &mut FilterContext,
    ) -> Result<()> {
        // Evenkeel first: it replaces what clients may not say of themselves.
        self.proxy.upstream_request_filter(session, upstream_request, &mut ctx.evenkeel).await?;
        upstream_request.remove_header("X-Api-Key");
        if let Some(key) = &ctx.key {
            upstream_request.insert_header("X-Key-Id", &key[..key.floor_char_boundary(4)])?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut FilterContext,
    ) -> Result<()> {
        self.proxy.response_filter(session, response, &mut ctx.evenkeel).await?;
        response.insert_header("X-Filtered", "yes")
    }

    // The rest is passed on as it is.

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut FilterContext) -> Result<Box<HttpPeer>> {
        self.proxy.upstream_peer(session, &mut ctx.evenkeel).await
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        peer: &HttpPeer,
        file: RawFd,
        digest: Option<&Digest>,
        ctx: &mut FilterContext,
    ) -> Result<()> {
        self.proxy.connected_to_upstream(session, reused, peer, file, digest, &mut ctx.evenkeel).await
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        is_end: bool,
        ctx: &mut FilterContext,
    ) -> Result<()> {
        self.proxy.request_body_filter(session, body, is_end, &mut ctx.evenkeel).await
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut FilterContext,
    ) -> Result<()> {
        self.proxy.upstream_response_filter(session, response, &mut ctx.evenkeel).await
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        peer: &HttpPeer,
        ctx: &mut FilterContext,
        e: Box<Error>,
    ) -> Box<Error> {
        self.proxy.fail_to_connect(session, peer, &mut ctx.evenkeel, e)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        e: Box<Error>,
        ctx: &mut FilterContext,
        reused: bool,
    ) -> Box<Error> {
        self.proxy.error_while_proxy(peer, session, e, &mut ctx.evenkeel, reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, e: &Error, ctx: &mut FilterContext) -> FailToProxy {
        self.proxy.fail_to_proxy(session, e, &mut ctx.evenkeel).await
    }

    async fn logging(&self, session: &mut Session, e: Option<&Error>, ctx: &mut FilterContext) {
        self.proxy.logging(session, e, &mut ctx.evenkeel).await;
    }

    fn suppress_error_log(&self, session: &Session, ctx: &FilterContext, e: &Error) -> bool {
        self.proxy.suppress_error_log(session, &ctx.evenkeel, e)
    }

    fn suppress_proxy_warn_log(
        &self,
        session: &Session,
        ctx: &FilterContext,
        e: &Error,
        log: ProxyWarnLogContext,
    ) -> bool {
        self.proxy.suppress_proxy_warn_log(session, &ctx.evenkeel, e, log)
    }
}
