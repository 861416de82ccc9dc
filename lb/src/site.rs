//! The compiled sites: how a site is found by listener and host, and a route of it by path and conditions. There is no
//! fallback from one site to another. Unchanged parts are reused from the previous snapshot.
//!
//! - [`hosts`]: finds a site by host.
//! - [`routes`]: finds a route of a site by path.
//! - [`mod@unreachable`]: reports what no request can reach.

pub(crate) mod hosts;
pub(crate) mod routes;
pub(crate) mod unreachable;

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use foldhash::fast::RandomState;

use self::hosts::HostTable;
use self::routes::{PathMatcher, RouteTable};
use crate::config::backend::SocketAddress;
use crate::config::site::{
    self, BackendRules, JumpTo, ListenerName, Matcher, Redirect, Respond, RouteConfig, RouteName, Rules, SiteConfig,
};
use crate::config::{Config, ListenerAddresses, PoolName};
use crate::metrics::{Metrics, RouteMetrics};
use crate::pool::Pool;
use crate::value::condition::Condition;
use crate::value::pattern::Sets;
use crate::value::{Facts, Value};

/// The sites of a snapshot.
#[derive(Debug)]
pub struct Sites {
    /// The listeners that they were compiled for.
    listeners: Vec<(ListenerName, ListenerAddresses)>,
    /// The sites that are on every listener, by index.
    everywhere: HostTable<u32>,
    /// For each listener with additional sites: all of its sites.
    own: Box<[Option<HostTable<u32>>]>,
    /// Those of top-level routes come first.
    sites: Box<[Arc<Site>]>,
    short: usize,
}

/// The requests of certain hosts, and what is done with them.
#[derive(Debug)]
pub struct Site {
    pub config: Arc<SiteConfig>,
    table: RouteTable<RouteId>,
    /// In the order of the configuration.
    routes: Box<[Route]>,
    names: HashMap<RouteName, RouteId, RandomState>,
    /// The rules for requests that no route matches.
    fallback: Route,
}

/// The index of a route in its site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteId(u32);

#[derive(Debug)]
pub struct Route {
    pub name: RouteName,
    /// If it does not hold, the next best route is tried.
    pub condition: Option<Condition>,
    /// Whether only jumps and error pages reach it.
    pub is_internal: bool,
    /// Whether it has rules.
    pub has_rules: bool,
    /// Whether its rules set limits for backends.
    pub limits_backends: bool,
    /// Whether an endless loop of jumps from here has been logged.
    pub is_loop_logged: AtomicBool,
    pub action: Action,
}

/// What responds to a request.
#[derive(Debug)]
pub enum Action {
    Pool(RoutePool),
    /// The one of these pools that the value names.
    PoolFrom {
        value: Value,
        pools: Box<[RoutePool]>,
        /// For requests for which it names none.
        metrics: RouteMetrics,
    },
    Respond {
        with: Respond,
        metrics: RouteMetrics,
    },
    Redirect {
        to: Redirect,
        metrics: RouteMetrics,
    },
    Jump {
        to: JumpTo,
        metrics: RouteMetrics,
    },
    /// No route matches.
    Missing,
}

/// A pool that a route uses.
#[derive(Debug)]
pub struct RoutePool {
    pub pool: Arc<Pool>,
    /// For requests of the route to this pool.
    pub metrics: RouteMetrics,
}

/// The destination of a request.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    pub site: &'a Arc<Site>,
    pub route: RouteId,
}

impl Sites {
    /// Compiles the sites of `config`, whose pools are `pools`. Sites that are the same in `previous` are reused; if
    /// all are, `previous` itself is returned.
    pub fn compile(
        config: &Config,
        pools: &[Arc<Pool>],
        previous: Option<(&Config, &Arc<Self>)>,
        metrics: &Metrics,
    ) -> Arc<Self> {
        let pools: Pools<'_> = pools.iter().map(|pool| (&pool.name, pool)).collect();
        let short: Vec<Arc<SiteConfig>> = match previous {
            Some((before, sites)) if before.routes == config.routes => {
                sites.short().map(|site| Arc::clone(&site.config)).collect()
            }
            _ => SiteConfig::of_routes(&config.routes).into_iter().map(Arc::new).collect(),
        };
        let before: HashMap<&str, &Arc<Site>, RandomState> =
            previous.iter().flat_map(|(_, sites)| &sites.sites).map(|site| (&*site.config.name, site)).collect();
        let mut sets = Sets::default();
        let site = |config: &Arc<SiteConfig>| match before.get(&*config.name) {
            Some(site) if site.is_of(config, &pools) => Arc::clone(site),
            _ => Arc::new(Site::compile(config, &pools, metrics, &mut sets)),
        };
        let sites: Box<[Arc<Site>]> = short.iter().chain(&config.sites).map(site).collect();
        let listeners: Vec<_> =
            config.listeners.iter().map(|listener| (listener.name.clone(), listener.addresses.clone())).collect();
        if let Some((_, previous)) = previous
            && previous.listeners == listeners
            && previous.sites.len() == sites.len()
            && previous.sites.iter().zip(&sites).all(|(before, now)| Arc::ptr_eq(before, now))
        {
            return Arc::clone(previous);
        }
        let everywhere = table(&sites, |site| site.listeners.is_empty());
        let own = listeners.iter().map(|(name, _)| {
            let has_own = sites.iter().any(|site| site.config.listeners.contains(name));
            has_own.then(|| table(&sites, |site| site.listeners.is_empty() || site.listeners.contains(name)))
        });
        let own = own.collect();
        Arc::new(Self { listeners, everywhere, own, sites, short: short.len() })
    }

    /// The index of the listener for connections to this address: the one that has the address now; else the one with
    /// the name, which has moved; else the only one with an overlapping address. `None`: it was removed.
    #[inline]
    pub fn listener<N: Deref<Target = ListenerName>>(
        &self,
        address: &SocketAddress,
        name: impl FnOnce() -> N,
    ) -> Option<usize> {
        let here = self.listeners.iter().position(|(_, addresses)| addresses.contains(address));
        here.or_else(|| self.moved(address, &name()))
    }

    #[cold]
    fn moved(&self, address: &SocketAddress, name: &ListenerName) -> Option<usize> {
        if let Some(index) = self.listeners.iter().position(|(other, _)| other == name) {
            return Some(index);
        }
        let overlaps = |(_, addresses): &(ListenerName, ListenerAddresses)| addresses.overlap(address);
        let mut near = (0..).zip(&self.listeners).filter(|(_, listener)| overlaps(listener)).map(|(index, _)| index);
        near.next().filter(|_| near.next().is_none())
    }

    /// Whether a listener has sites that are not on all listeners.
    pub fn has_own(&self, listener: usize) -> bool {
        self.own.get(listener).is_some_and(Option::is_some)
    }

    /// The site for `host`, as sent in the request, on the listener with this index. Without a listener, because it was
    /// removed, only sites that are on all listeners are found.
    #[inline]
    pub fn site(&self, listener: Option<usize>, host: &str) -> Option<&Arc<Site>> {
        let Some(listener) = listener else { return self.site_of_all(host) };
        let own = self.own.get(listener).and_then(Option::as_ref);
        self.sites.get(*own.unwrap_or(&self.everywhere).find(host)? as usize)
    }

    #[cold]
    fn site_of_all(&self, host: &str) -> Option<&Arc<Site>> {
        let mut found = (0..self.own.len()).map(|listener| self.site(Some(listener), host));
        let first = found.next()??;
        found.all(|other| other.is_some_and(|other| Arc::ptr_eq(first, other))).then_some(first)
    }

    /// The destination of a request with this path, which is decoded and normalised. `None`: no site matches its host.
    #[inline]
    pub fn find(&self, listener: Option<usize>, host: &str, path: &[u8], facts: &impl Facts) -> Option<Found<'_>> {
        let site = self.site(listener, host)?;
        Some(Found { site, route: site.find(path, facts) })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.sites.iter()
    }

    fn short(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.sites.iter().take(self.short)
    }
}

type Pools<'a> = HashMap<&'a PoolName, &'a Arc<Pool>, RandomState>;

/// A table of the hosts of those sites for which `there` is true.
fn table(sites: &[Arc<Site>], there: impl Fn(&SiteConfig) -> bool) -> HostTable<u32> {
    let there = (0..).zip(sites).filter(|(_, site)| there(&site.config));
    HostTable::new(there.flat_map(|(index, site)| site.config.hosts.iter().map(move |host| (host.clone(), index))))
}

impl Site {
    fn compile(config: &Arc<SiteConfig>, pools: &Pools<'_>, metrics: &Metrics, sets: &mut Sets) -> Self {
        let routes: Box<[Route]> = config.routes.iter().map(|route| Route::compile(route, pools, metrics)).collect();
        let ids = || (0..).map(RouteId);
        let matchers = config.routes.iter().zip(ids()).filter_map(|(route, id)| Some((path_matcher(route)?, id)));
        let fallback = Route {
            name: RouteName::new(&config.name),
            condition: None,
            is_internal: false,
            has_rules: config.fallback != Rules::default(),
            limits_backends: config.fallback.backend != BackendRules::default(),
            is_loop_logged: AtomicBool::new(false),
            action: Action::Missing,
        };
        let names = config.routes.iter().map(|route| route.name.clone()).zip(ids()).collect();
        Self { config: Arc::clone(config), table: RouteTable::new(matchers, sets), routes, names, fallback }
    }

    /// Whether it is what would be compiled from `config`.
    fn is_of(&self, config: &Arc<SiteConfig>, pools: &Pools<'_>) -> bool {
        let is_there = |of: &RoutePool| pools.get(&of.pool.name).is_some_and(|pool| Arc::ptr_eq(pool, &of.pool));
        (Arc::ptr_eq(&self.config, config) || self.config == *config)
            && self.routes.iter().flat_map(|route| route.action.pools()).all(is_there)
    }

    /// The route for a decoded and normalised path; [`RouteId::FALLBACK`] if none matches.
    #[inline]
    pub fn find(&self, path: &[u8], facts: &impl Facts) -> RouteId {
        self.search(path, |_, route| route.holds(facts))
    }

    /// Like [`find`](Self::find), but the facts are built only if a condition needs them.
    #[inline]
    pub fn find_with<F: Facts>(&self, path: &[u8], facts: impl Fn() -> F) -> RouteId {
        self.search(path, |_, route| match &route.condition {
            None => true,
            Some(condition) => condition.holds(&facts()),
        })
    }

    /// Like [`find`](Self::find), with `holds` in place of the routes' conditions. It is called for matching routes in
    /// the order of the search, until it returns true.
    #[inline]
    pub fn search(&self, path: &[u8], mut holds: impl FnMut(RouteId, &Route) -> bool) -> RouteId {
        self.table.find(path, |id| holds(*id, self.route(*id))).copied().unwrap_or(RouteId::FALLBACK)
    }

    #[inline]
    pub fn route(&self, id: RouteId) -> &Route {
        self.routes.get(id.0 as usize).unwrap_or(&self.fallback)
    }

    /// Of the route with this index in the configuration.
    pub fn id(&self, index: usize) -> RouteId {
        u32::try_from(index).map_or(RouteId::FALLBACK, RouteId)
    }

    /// Whether a route matches this path, regardless of other routes.
    pub fn covers(&self, id: RouteId, path: &[u8]) -> bool {
        self.route_config(id).and_then(path_matcher).is_some_and(|matcher| matcher.covers(path))
    }

    /// The configuration of a route; `None` for the fallback.
    pub fn route_config(&self, id: RouteId) -> Option<&RouteConfig> {
        self.config.routes.get(id.0 as usize)
    }

    /// The rules in force for a route.
    pub fn rules(&self, id: RouteId) -> &Rules {
        self.route_config(id).map_or(&self.config.fallback, |route| &route.rules)
    }

    /// The route with this name, as the target of a jump.
    pub fn named(&self, name: &RouteName) -> Option<RouteId> {
        self.names.get(name).copied()
    }

    /// Every route and its pool, as in the metrics; without a pool for routes that respond themselves.
    pub fn series(&self) -> impl Iterator<Item = (&str, &str)> {
        self.routes.iter().flat_map(|route| {
            let (pools, own) = match &route.action {
                Action::Pool(pool) => (std::slice::from_ref(pool), None),
                Action::PoolFrom { pools, .. } => (&**pools, Some(NO_POOL)),
                Action::Respond { .. } | Action::Redirect { .. } | Action::Jump { .. } => (&[][..], Some(NO_POOL)),
                Action::Missing => (&[][..], None),
            };
            pools.iter().map(|of| of.pool.name.as_str()).chain(own).map(|pool| (route.name.as_str(), pool))
        })
    }
}

/// The pool in the metrics of responses without a pool.
const NO_POOL: &str = "";

impl Route {
    fn compile(config: &RouteConfig, pools: &Pools<'_>, metrics: &Metrics) -> Self {
        let own = || metrics.route(config.name.as_str(), NO_POOL);
        let route_pool = |name: &PoolName| {
            let pool = Arc::clone(pools.get(name)?);
            Some(RoutePool { metrics: metrics.route(config.name.as_str(), name.as_str()), pool })
        };
        let action = match &config.action {
            // Every pool that a configuration names exists.
            site::Action::Pool(name) => route_pool(name).map_or(Action::Missing, Action::Pool),
            site::Action::PoolFrom(from) => Action::PoolFrom {
                value: from.value.clone(),
                pools: from.pools.iter().filter_map(route_pool).collect(),
                metrics: own(),
            },
            site::Action::Respond(with) => Action::Respond { with: with.clone(), metrics: own() },
            site::Action::Redirect(to) => Action::Redirect { to: to.clone(), metrics: own() },
            site::Action::Jump(to) => Action::Jump { to: to.clone(), metrics: own() },
        };
        Self {
            name: config.name.clone(),
            condition: config.condition.clone(),
            is_internal: config.internal,
            has_rules: config.rules != Rules::default(),
            limits_backends: config.rules.backend != BackendRules::default(),
            is_loop_logged: AtomicBool::new(false),
            action,
        }
    }
}

impl Route {
    /// Whether its condition holds.
    #[inline]
    pub fn holds(&self, facts: &impl Facts) -> bool {
        self.condition.as_ref().is_none_or(|condition| condition.holds(facts))
    }
}

impl Action {
    /// The pools that it may use.
    pub fn pools(&self) -> &[RoutePool] {
        match self {
            Self::Pool(pool) => std::slice::from_ref(pool),
            Self::PoolFrom { pools, .. } => pools,
            Self::Respond { .. } | Self::Redirect { .. } | Self::Jump { .. } | Self::Missing => &[],
        }
    }
}

impl RouteId {
    /// Stands for no route.
    pub const FALLBACK: Self = Self(u32::MAX);
}

/// The paths that a route matches; `None`: only jumps reach it.
fn path_matcher(route: &RouteConfig) -> Option<PathMatcher> {
    let over_regex = route.over_regex;
    Some(match &route.matcher {
        Matcher::Path(path) => PathMatcher::Segments { text: path.as_str().into(), over_regex },
        Matcher::Exact(path) => PathMatcher::Exact(path.as_str().into()),
        Matcher::Prefix(text) => PathMatcher::Prefix { text: text.as_str().into(), over_regex },
        Matcher::Regex(pattern) => PathMatcher::Matches(pattern.clone()),
        Matcher::Named => return None,
    })
}

#[cfg(test)]
mod tests;
