//! The limits of an exchange: the route's, else those of its listener or pool.

use std::num::NonZero;
use std::time::Duration;

use crate::config::site::{BackendRules, ClientRules};
use crate::config::{ListenerSettings, PoolSettings};
use crate::failure::{Detail, Failure};

/// The name of a setting: of its section, unless a site or route has its own.
macro_rules! setting {
    ($own:expr, $section:literal, $key:literal) => {
        if $own.is_some() { concat!($key, " of the site or route") } else { concat!($section, " ", $key) }
    };
}

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

    /// The limit that led to this failure of a client. `rules`: those of the route. `is_rate`: the client was too slow
    /// on average. `length`: the declared one of the content.
    #[cold]
    pub(crate) fn explain(
        &self,
        failure: Failure,
        rules: Option<&ClientRules>,
        is_rate: bool,
        length: Option<u64>,
    ) -> Option<Detail> {
        let rules = rules.cloned().unwrap_or_default();
        let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
        Some(match failure {
            Failure::BodyTooLarge => Detail::Limit {
                setting: setting!(rules.max_body_bytes, "[[listener]]", "max_body_bytes"),
                limit: size(self.max_body_bytes?),
                value: length.map(size),
            },
            Failure::ClientTimeout | Failure::ClientStalled if is_rate => {
                let setting = setting!(rules.min_rate, "[[listener]]", "min_rate");
                Detail::Rate { setting, limit: self.min_rate?.get() }
            }
            Failure::ClientTimeout => {
                let setting = setting!(rules.body_timeout, "[[listener]]", "body_timeout");
                Detail::Timeout { setting, limit: self.body_timeout }
            }
            Failure::ClientStalled => {
                let setting = setting!(rules.send_timeout, "[[listener]]", "send_timeout");
                Detail::Timeout { setting, limit: self.send_timeout }
            }
            _ => return None,
        })
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

    /// The timeout that led to this failure of a backend. `rules`: those of the route.
    #[cold]
    pub(crate) fn explain(&self, failure: Failure, rules: Option<&BackendRules>) -> Option<Detail> {
        let rules = rules.cloned().unwrap_or_default();
        let (setting, limit) = match failure {
            Failure::ConnectTimeout => {
                (setting!(rules.connect_timeout, "[[pool]]", "connect_timeout"), self.connect_timeout)
            }
            Failure::WriteTimeout => (setting!(rules.write_timeout, "[[pool]]", "write_timeout"), self.write_timeout),
            Failure::ResponseTimeout => {
                (setting!(rules.response_timeout, "[[pool]]", "response_timeout"), self.response_timeout)
            }
            Failure::ResponseStalled => (setting!(rules.read_timeout, "[[pool]]", "read_timeout"), self.read_timeout),
            _ => return None,
        };
        Some(Detail::Timeout { setting, limit })
    }
}
