//! The configured sites and pools at one moment. A snapshot is immutable: a change creates another one with the same
//! pools. A route refers to the pool itself and not to its settings at some time, so that only a change of a site
//! rebuilds that site.

use std::sync::Arc;

use crate::balance::Ring;
use crate::clock;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{BackendAddress, Weight};
use crate::config::{Config, PoolConfig, PoolName, Secret};
use crate::metrics::Metrics;
use crate::pool::{Draft, Plan, Pool};
use crate::site::Sites;

#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots of this process from 1.
    pub version: u64,
    /// The configuration, runtime changes included.
    pub config: Config,
    pub sites: Arc<Sites>,
    pub pools: Vec<Arc<Pool>>,
    /// Pools that are no longer configured, until no exchange is in flight on their backends. Exchanges that began
    /// before may still be sent there.
    pub leaving: Vec<Arc<Pool>>,
}

/// Hash rings that are built before the change that needs them, since that takes long.
#[derive(Debug, Default)]
pub struct Rings(Vec<Arc<Ring>>);

impl Snapshot {
    /// A snapshot of `config`. Pools that exist in `previous` are kept, and get their settings from `config`.
    pub fn new(config: Config, previous: Option<&Self>, rings: &Rings, metrics: &Metrics, secret: &Secret) -> Self {
        let pool = |config: &PoolConfig| {
            let draft = |before: Option<&Plan>| Draft::new(config, before, rings.find(config), metrics, secret);
            match previous.and_then(|previous| previous.pool_with_config(&config.name)) {
                Some((pool, before)) => {
                    let draft = || draft(Some(&*pool.plan()));
                    match before {
                        Some(before) if before == config => {}
                        Some(_) => pool.adopt(draft(), clock::now()),
                        // It was not probed meanwhile.
                        None => pool.adopt(draft().with_all_outdated(), clock::now()),
                    }
                    Arc::clone(pool)
                }
                None => Arc::new(Pool::new(&config.name, draft(None), metrics)),
            }
        };
        let pools: Vec<Arc<Pool>> = config.pools.iter().map(pool).collect();
        let is_leaving = |pool: &&Arc<Pool>| {
            !config.pools.iter().any(|stays| stays.name == pool.name) && pool.plan().in_flight() > 0
        };
        let leaving = previous.iter().flat_map(|previous| previous.all_pools()).filter(is_leaving).cloned().collect();
        let before = previous.map(|previous| (&previous.config, &previous.sites));
        let sites = Sites::compile(&config, &pools, before, metrics);
        let version = previous.map_or(1, |p| p.version + 1);
        Self { version, config, sites, pools, leaving }
    }

    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// Whether every pool has been probed once, so that it is ready for traffic.
    pub fn is_probed(&self) -> bool {
        self.pools.iter().all(|pool| pool.plan().is_probed())
    }

    /// The configured pools, then those that are leaving.
    pub fn all_pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.pools.iter().chain(&self.leaving)
    }

    /// A pool and its configuration, which a leaving one does not have.
    fn pool_with_config(&self, name: &PoolName) -> Option<(&Arc<Pool>, Option<&PoolConfig>)> {
        let configured = self.pools.iter().zip(self.config.pools.iter().map(Some));
        configured.chain(self.leaving.iter().map(|pool| (pool, None))).find(|(pool, _)| pool.name == *name)
    }
}

impl Rings {
    /// Builds the rings that `config` needs and neither this nor `previous` has.
    pub fn make_missing(&mut self, config: &Config, previous: &Snapshot) {
        let made: Vec<_> = self.missing(config, previous).map(|pool| Arc::new(Ring::of(parts(pool)))).collect();
        self.0.extend(made);
    }

    pub fn are_complete(&self, config: &Config, previous: &Snapshot) -> bool {
        self.missing(config, previous).next().is_none()
    }

    fn missing<'a>(&'a self, config: &'a Config, previous: &'a Snapshot) -> impl Iterator<Item = &'a PoolConfig> {
        let has_one = |pool: &PoolConfig| previous.pool(&pool.name).is_some_and(|p| p.plan().ring_for(pool).is_some());
        let hashing = config.pools.iter().filter(|pool| pool.algorithm == Algorithm::IpHash);
        hashing.filter(move |pool| self.find(pool).is_none() && !has_one(pool))
    }

    fn find(&self, pool: &PoolConfig) -> Option<Arc<Ring>> {
        self.0.iter().find(|ring| ring.is_of(parts(pool))).map(Arc::clone)
    }
}

/// What the ring of a pool is built from.
fn parts(pool: &PoolConfig) -> impl Iterator<Item = (&BackendAddress, Weight)> {
    pool.backends.iter().map(|backend| (&backend.address, backend.weight))
}
