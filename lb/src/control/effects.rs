//! Describes what a change does to exchanges, clients and backends, and whether it would leave no usable backend.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::ChangeRequest;
use crate::backend::Status;
use crate::change::{BackendSettings, Edit, Edits};
use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress};
use crate::config::difference::seconds;
use crate::config::{Config, PoolConfig, PoolName, advice};
use crate::pool::Pool;
use crate::snapshot::Snapshot;

/// More would not be read.
const MAX_EFFECTS: usize = 100;

/// A sentence for each edit, up to a limit, and one for each pool that gains or loses a backend.
pub(super) fn of(
    edits: &Edits,
    before: &Snapshot,
    after: &Config,
    deadline: Option<Duration>,
    now: Instant,
) -> Vec<String> {
    let effects = edits.iter().take(MAX_EFFECTS).filter_map(|edit| effect(edit, before, deadline, now));
    let mut effects: Vec<String> = effects.collect();
    for (pool, config) in pools_of(edits, before, after) {
        let (usable, active) = left(pool, config, now);
        effects.push(advice::no_active_backend(after, config).unwrap_or_else(|| {
            format!("pool {}: {usable} of {active} active backends can take traffic then", pool.name)
        }));
    }
    effects
}

/// Requested settings that have no effect.
pub(super) fn ignored(request: &ChangeRequest, edits: &Edits, after: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for pool in &after.pools {
        let touched = edits.iter().any(|edit| edit.pool() == &pool.name);
        if touched && let Some(message) = advice::ignored_weights(pool) {
            warnings.push(message);
        }
        if edits.iter().any(|edit| matches!(edit, Edit::Backend { .. }) && edit.pool() == &pool.name) {
            warnings.extend(advice::no_active_backend(after, pool));
        }
    }
    if let ChangeRequest::AddBackend { backend, .. } = request {
        warnings.extend(advice::own_address(after, &backend.address).map(|(_, message)| message));
    }
    if let ChangeRequest::ChangeBackend { pool, backend, .. } = request
        && let Some(pool) = after.pools.iter().find(|p| p.name.as_str() == pool)
        && pool.backends.iter().any(|b| b.address.as_str() == backend && b.state == AdminState::Removing)
    {
        warnings.push(format!(
            "{backend} is being removed from pool {}, whatever its weight: add it again to keep it",
            pool.name
        ));
    }
    warnings
}

/// Describes the pool that would be left with unhealthy backends only, and the consequence. A pool without any active
/// backend is not reported: that is intended.
pub(super) fn leaves_no_active_backend(
    edits: &Edits,
    before: &Snapshot,
    after: &Config,
    now: Instant,
) -> Option<(PoolName, String)> {
    pools_of(edits, before, after).find_map(|(pool, config)| {
        let (usable_now, _) = left(pool, before.config.pools.iter().find(|p| p.name == pool.name)?, now);
        let (usable, active) = left(pool, config, now);
        let is_last = usable_now > 0 && usable == 0 && active > 0;
        let others = if active == 1 { "the other backend is".to_owned() } else { format!("the other {active} are") };
        let then = match config.settings.panic_threshold {
            0 => "so requests would get 503",
            _ => "so the pool would panic and send requests to backends that fail",
        };
        is_last.then(|| (pool.name.clone(), format!("{others} unhealthy or ejected, {then}")))
    })
}

/// The pools that gain, lose or change a backend.
fn pools_of<'a>(
    edits: &'a Edits,
    before: &'a Snapshot,
    after: &'a Config,
) -> impl Iterator<Item = (&'a Pool, &'a PoolConfig)> {
    let concerns = |name: &PoolName| {
        edits.iter().any(|edit| match edit {
            Edit::Backend { pool, before, after, .. } => pool == name && state(*before) != state(*after),
            Edit::Algorithm { .. } => false,
        })
    };
    let config = |pool: &Pool| after.pools.iter().find(|config| config.name == pool.name);
    before.pools.iter().filter(move |pool| concerns(&pool.name)).filter_map(move |pool| Some((&**pool, config(pool)?)))
}

fn state(settings: Option<BackendSettings>) -> Option<AdminState> {
    settings.map(|settings| settings.state)
}

/// How many backends can take traffic as far as is known, and how many are active.
fn left(pool: &Pool, config: &PoolConfig, now: Instant) -> (usize, usize) {
    let active = config.backends.iter().filter(|backend| backend.state == AdminState::Active);
    let plan = pool.plan();
    let known: HashMap<_, _> = plan.backends().map(|(member, _)| (&member.backend.address, &member.backend)).collect();
    let (mut usable, mut count) = (0, 0);
    for backend in active {
        count += 1;
        let status = known.get(&backend.address).map_or(Status::Unknown, |known| known.status(AdminState::Active, now));
        usable += usize::from(matches!(status, Status::Healthy | Status::Unknown));
    }
    (usable, count)
}

fn effect(edit: &Edit, before: &Snapshot, deadline: Option<Duration>, now: Instant) -> Option<String> {
    let pool = before.pools.iter().find(|pool| pool.name == *edit.pool())?;
    match edit {
        Edit::Algorithm { after, .. } => {
            let clients = match after {
                Algorithm::IpHash => ": each client goes to the backend that its address hashes to",
                _ => "",
            };
            Some(format!(
                "pool {}: requests from now on are balanced by {after}{clients}; exchanges in flight stay where they are",
                pool.name
            ))
        }
        Edit::Backend { backend, before, after, .. } if state(*before) == state(*after) => {
            let weight = |settings: &Option<BackendSettings>| settings.map_or(0, |settings| settings.weight.as_u32());
            (weight(before) != weight(after)).then(|| {
                format!("{backend}: weight {} from the next request on; nothing in flight moves", weight(after))
            })
        }
        Edit::Backend { backend, after, .. } => {
            Some(format!("{backend}: {}", of_state(pool, backend, state(*after), deadline, now)))
        }
    }
}

/// What happens to the exchanges of a backend or pool that takes no new ones.
pub(super) fn finishing(in_flight: u32) -> String {
    match in_flight {
        0 => "nothing is in flight".to_owned(),
        1 => "1 exchange in flight goes on to its end".to_owned(),
        n => format!("{n} exchanges in flight go on to their end"),
    }
}

fn of_state(
    pool: &Pool,
    backend: &BackendAddress,
    after: Option<AdminState>,
    deadline: Option<Duration>,
    now: Instant,
) -> String {
    let plan = pool.plan();
    let member = plan.backends().find(|(member, _)| member.backend.address == *backend);
    let in_flight = finishing(member.map_or(0, |(member, _)| member.backend.in_flight()));
    match after {
        // A draining backend is still probed, so its health is known.
        Some(AdminState::Active) => match member {
            Some((member, AdminState::Draining)) => match member.backend.status(AdminState::Active, now) {
                Status::Ejected => "takes traffic once its ejection is over".to_owned(),
                Status::Unhealthy => "takes traffic once its probes succeed".to_owned(),
                _ => "takes traffic at once".to_owned(),
            },
            _ if plan.settings.probe.is_some() => "takes traffic once a probe has succeeded".to_owned(),
            _ => "takes traffic at once".to_owned(),
        },
        Some(AdminState::Draining) => match plan.settings.sticky.as_ref().map(|sticky| sticky.grace) {
            Some(grace) if !grace.is_zero() => {
                let grace = seconds(deadline.map_or(grace, |deadline| deadline.min(grace)).as_secs_f64());
                format!("takes only its sticky clients for {grace}, then nothing new, and is still probed; {in_flight}")
            }
            _ => format!("takes nothing new and is still probed; {in_flight}"),
        },
        Some(AdminState::Down) => format!("takes nothing new and is not probed; {in_flight}"),
        Some(AdminState::Removing) | None => {
            format!("takes nothing new and leaves the pool when it is idle; {in_flight}")
        }
    }
}
