//! Routes and pools as they are wanted at one moment. A snapshot is never altered: a change makes another around
//! the same backends, and an exchange keeps the one it began with to its end, so no request sees two.

use std::sync::Arc;

use crate::config::{Config, PoolConfig, PoolName, RouteConfig, Secret};
use crate::metrics::{Metrics, RouteMetrics};
use crate::pool::Pool;
use crate::route::RouteTable;

#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots of this process from 1.
    pub version: u64,
    /// What was wanted, runtime changes included.
    pub config: Config,
    pub routes: RouteTable<Arc<Route>>,
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

impl Snapshot {
    /// A snapshot of `config`. Pools that did not change are those of `previous`, and so are backends.
    pub fn new(config: Config, previous: Option<&Self>, metrics: &Metrics, secret: &Secret) -> Self {
        let pool = |config: &PoolConfig| {
            let before = previous.and_then(|p| p.pool_with_config(&config.name));
            match before {
                Some((pool, before)) if before == config => Arc::clone(pool),
                _ => Arc::new(Pool::new(config, before.map(|(pool, _)| &**pool), metrics, secret)),
            }
        };
        let pools: Vec<Arc<Pool>> = config.pools.iter().map(pool).collect();
        let route = |route: &RouteConfig| {
            let pool = pools.iter().find(|pool| pool.name == route.pool)?;
            let name = format!("{}{}", route.host, route.path.as_str());
            let metrics = metrics.route(&name, pool.name.as_str());
            let target = Arc::new(Route { name, pool: Arc::clone(pool), metrics });
            Some((route.host.clone(), route.path.clone(), target))
        };
        let routes = RouteTable::new(config.routes.iter().filter_map(route).collect());
        let version = previous.map_or(1, |p| p.version + 1);
        Self { version, config, routes, pools }
    }

    pub fn pool(&self, name: &PoolName) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| pool.name == *name)
    }

    /// Whether every pool was probed once, so that traffic can be trusted to it.
    pub fn is_probed(&self) -> bool {
        self.pools.iter().all(|pool| pool.is_probed())
    }

    fn pool_with_config(&self, name: &PoolName) -> Option<(&Arc<Pool>, &PoolConfig)> {
        self.pools.iter().zip(&self.config.pools).find(|(pool, _)| pool.name == *name)
    }
}
