//! Routes and pools as they are wanted at one moment. A snapshot is never altered: a change makes another around the
//! same pools. A route leads to a pool itself, not to what was wanted of it at some time, so that only a change of
//! routes makes routes anew.

use std::sync::Arc;

use crate::balance::Ring;
use crate::clock;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{BackendAddress, Weight};
use crate::config::route::{HostPattern, PathPrefix};
use crate::config::{Config, HostRoute, PoolConfig, PoolName, Secret};
use crate::metrics::{Metrics, RouteMetrics};
use crate::pool::{Plan, Pool};
use crate::route::RouteTable;

#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots of this process from 1.
    pub version: u64,
    /// What was wanted, runtime changes included.
    pub config: Config,
    pub routes: Arc<RouteTable<Arc<Route>>>,
    pub pools: Vec<Arc<Pool>>,
}

/// Where a request goes that matched.
#[derive(Debug)]
pub struct Route {
    /// Host and path as configured.
    pub name: String,
    pub pool: Arc<Pool>,
    pub metrics: RouteMetrics,
}

/// Rings that are made before the change that needs them, since that takes long.
#[derive(Debug, Default)]
pub struct Rings(Vec<Arc<Ring>>);

impl Snapshot {
    /// A snapshot of `config`. Pools that `previous` names are the same ones, and go by `config` from now on.
    pub fn new(config: Config, previous: Option<&Self>, rings: &Rings, metrics: &Metrics, secret: &Secret) -> Self {
        let pool = |config: &PoolConfig| {
            let plan = |before| Plan::new(config, before, rings.find(config), metrics, secret);
            match previous.and_then(|previous| previous.pool_with_config(&config.name)) {
                Some((pool, before)) => {
                    if before != config {
                        pool.adopt(Arc::new(plan(Some(&*pool.plan()))), clock::now());
                    }
                    Arc::clone(pool)
                }
                None => Arc::new(Pool::new(&config.name, plan(None), metrics)),
            }
        };
        let pools: Vec<Arc<Pool>> = config.pools.iter().map(pool).collect();
        let routes = match previous.filter(|previous| previous.routes_lead_to(&pools, &config)) {
            Some(previous) => Arc::clone(&previous.routes),
            None => Arc::new(RouteTable::new(config.routes.iter().filter_map(|r| route(r, &pools, metrics)).collect())),
        };
        let version = previous.map_or(1, |p| p.version + 1);
        Self { version, config, routes, pools }
    }

    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// Whether every pool was probed once, so that traffic can be trusted to it.
    pub fn is_probed(&self) -> bool {
        self.pools.iter().all(|pool| pool.plan().is_probed())
    }

    fn pool_with_config(&self, name: &PoolName) -> Option<(&Arc<Pool>, &PoolConfig)> {
        self.pools.iter().zip(&self.config.pools).find(|(pool, _)| pool.name == *name)
    }

    /// Whether the routes are those of `config`, where its pools are `pools`.
    fn routes_lead_to(&self, pools: &[Arc<Pool>], config: &Config) -> bool {
        let is_there = |route: &Arc<Route>| pools.iter().any(|pool| Arc::ptr_eq(pool, &route.pool));
        self.config.routes == config.routes && self.routes.iter().all(is_there)
    }
}

fn route(config: &HostRoute, pools: &[Arc<Pool>], metrics: &Metrics) -> Option<(HostPattern, PathPrefix, Arc<Route>)> {
    let pool = pools.iter().find(|pool| pool.name == config.pool)?;
    let name = format!("{}{}", config.host, config.path.as_str());
    let metrics = metrics.route(&name, pool.name.as_str());
    let target = Arc::new(Route { name, pool: Arc::clone(pool), metrics });
    Some((config.host.clone(), config.path.clone(), target))
}

impl Rings {
    /// Makes those which `config` needs and neither this nor `previous` has.
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

/// What the ring of a pool is made of.
fn parts(pool: &PoolConfig) -> impl Iterator<Item = (&BackendAddress, Weight)> {
    pool.backends.iter().map(|backend| (&backend.address, backend.weight))
}
