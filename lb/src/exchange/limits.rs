//! The limits of an exchange: the route's, else those of its listener or pool.

use std::num::NonZero;
use std::time::Duration;

use crate::config::site::{BackendRules, ClientRules};
use crate::config::{ListenerSettings, PoolSettings};

/// Limits for a client during an exchange.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientLimits {
    /// `None`: no limit.
    pub max_body_bytes: Option<u64>,
    pub body_timeout: Duration,
    /// Bytes per second; `None`: any.
    pub min_rate: Option<NonZero<u32>>,
    pub send_timeout: Duration,
}

/// Limits for a backend during an attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackendLimits {
    pub connect_timeout: Duration,
    pub response_timeout: Duration,
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    pub tunnel_timeout: Duration,
    pub retries: usize,
    pub retry_timeout: Duration,
}

impl ClientLimits {
    pub(crate) fn of_listener(listener: &ListenerSettings) -> Self {
        let ListenerSettings { max_body_bytes, body_timeout, min_rate, send_timeout, .. } = *listener;
        Self { max_body_bytes, body_timeout, min_rate, send_timeout }
    }

    /// These limits with the overrides of a route.
    #[must_use]
    pub(crate) fn with(self, rules: &ClientRules) -> Self {
        Self {
            max_body_bytes: rules.max_body_bytes.map_or(self.max_body_bytes, |max| Some(max).filter(|max| *max > 0)),
            body_timeout: rules.body_timeout.unwrap_or(self.body_timeout),
            min_rate: rules.min_rate.map_or(self.min_rate, NonZero::new),
            send_timeout: rules.send_timeout.unwrap_or(self.send_timeout),
        }
    }
}

impl BackendLimits {
    pub(crate) fn of_pool(pool: &PoolSettings) -> Self {
        Self {
            connect_timeout: pool.connect_timeout,
            response_timeout: pool.response_timeout,
            read_timeout: pool.read_timeout,
            write_timeout: pool.write_timeout,
            tunnel_timeout: pool.tunnel_timeout,
            retries: pool.retries,
            retry_timeout: pool.retry_timeout,
        }
    }

    /// These limits with the overrides of a route.
    #[must_use]
    pub(crate) fn with(self, rules: &BackendRules) -> Self {
        let response_timeout = rules.response_timeout.unwrap_or(self.response_timeout);
        let retry_timeout =
            rules.retry_timeout.map(|timeout| if timeout.is_zero() { response_timeout } else { timeout });
        Self {
            connect_timeout: rules.connect_timeout.unwrap_or(self.connect_timeout),
            response_timeout,
            read_timeout: rules.read_timeout.unwrap_or(self.read_timeout),
            write_timeout: rules.write_timeout.unwrap_or(self.write_timeout),
            tunnel_timeout: rules.tunnel_timeout.unwrap_or(self.tunnel_timeout),
            retries: rules.retries.unwrap_or(self.retries),
            retry_timeout: retry_timeout.unwrap_or(self.retry_timeout),
        }
    }
}
