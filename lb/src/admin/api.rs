//! The handlers. A change is made where blocking is allowed, since a snapshot of large pools takes its time; its
//! answer waits for the disk, but not for ever.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Admin;
use super::view::{BackendView, PoolView, PoolsView, set_gauges};
use crate::config::BackendConfig;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress, Weight};
use crate::control::{ChangeError, Control, ReloadError};
use crate::shutdown::Phase;
use crate::state::Persistence;

/// How long the answer to a change waits for the disk to take it.
const SAVING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the answer to a reload waits for the disk to give the file.
const RELOADING_TIMEOUT: Duration = Duration::from_secs(5);

type Answer = Result<Response, Problem>;

/// An error as `application/problem+json` (RFC 9457).
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    detail: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SwitchAlgorithm {
    algorithm: String,
    pool: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBackend {
    address: String,
    weight: Option<i64>,
    state: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeBackend {
    weight: Option<i64>,
    state: Option<String>,
}

pub async fn algorithms(State(admin): State<Arc<Admin>>) -> Response {
    let snapshot = admin.control.snapshot();
    let pools: Vec<_> =
        snapshot.pools.iter().map(|pool| json!({ "pool": pool.name, "algorithm": pool.plan().algorithm })).collect();
    Json(json!({ "version": snapshot.version, "choices": Algorithm::ALL, "pools": pools })).into_response()
}

pub async fn switch_algorithm(
    State(admin): State<Arc<Admin>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let wanted: SwitchAlgorithm = parse(&headers, body)?;
    let algorithm: Algorithm = wanted.algorithm.parse().map_err(Problem::bad_request)?;
    let (version, switches) =
        change(&admin, move |control| control.switch_algorithm(wanted.pool.as_deref(), algorithm)).await?;
    for switch in &switches {
        tracing::info!(pool = %switch.pool, previous = %switch.previous, current = %switch.current, "algorithm switched");
    }
    let pools: Vec<_> =
        switches.iter().map(|s| json!({ "pool": s.pool, "previous": s.previous, "current": s.current })).collect();
    Ok(changed(&admin, StatusCode::OK, json!({ "version": version, "pools": pools })).await)
}

pub async fn pools(State(admin): State<Arc<Admin>>) -> Response {
    let (snapshot, now) = (admin.control.snapshot(), Instant::now());
    let pools: Vec<_> = snapshot.pools.iter().map(|pool| PoolView::new(pool, now)).collect();
    Json(PoolsView { version: snapshot.version, pools }).into_response()
}

pub async fn pool(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Answer {
    let snapshot = admin.control.snapshot();
    let found = snapshot.pools.iter().find(|pool| pool.name.as_str() == name);
    let pool = found.ok_or_else(|| {
        let names: Vec<_> = snapshot.pools.iter().map(|pool| pool.name.as_str()).collect();
        Problem::new(StatusCode::NOT_FOUND, format!("there is no pool \"{name}\"; the pools are {}", names.join(", ")))
    })?;
    Ok(Json(PoolView::new(pool, Instant::now())).into_response())
}

pub async fn add_backend(
    State(admin): State<Arc<Admin>>,
    Path(pool): Path<String>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let wanted: AddBackend = parse(&headers, body)?;
    let address: BackendAddress = wanted.address.parse().map_err(Problem::bad_request)?;
    let backend = BackendConfig {
        address: address.clone(),
        weight: weight(wanted.weight)?.unwrap_or(Weight::ONE),
        state: state(wanted.state)?.unwrap_or(AdminState::Active),
    };
    let name = pool.clone();
    change(&admin, move |control| control.add_backend(&name, backend)).await?;
    tracing::info!(pool, backend = %address, "backend added");
    let view = backend_view(&admin, &pool, address.as_str())?;
    Ok(changed(&admin, StatusCode::CREATED, view).await)
}

pub async fn change_backend(
    State(admin): State<Arc<Admin>>,
    Path((pool, address)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let wanted: ChangeBackend = parse(&headers, body)?;
    let (weight, state) = (weight(wanted.weight)?, state(wanted.state.clone())?);
    if weight.is_none() && state.is_none() {
        return Err(Problem::bad_request("give a weight, a state or both"));
    }
    let (in_pool, of) = (pool.clone(), address.clone());
    change(&admin, move |control| control.change_backend(&in_pool, &of, weight, state)).await?;
    tracing::info!(pool, backend = address, weight = wanted.weight, state = wanted.state, "backend changed");
    let view = backend_view(&admin, &pool, &address)?;
    Ok(changed(&admin, StatusCode::OK, view).await)
}

pub async fn remove_backend(State(admin): State<Arc<Admin>>, Path((pool, address)): Path<(String, String)>) -> Answer {
    let (in_pool, of) = (pool.clone(), address.clone());
    change(&admin, move |control| {
        control.remove_backend(&in_pool, &of)?;
        control.drop_drained();
        Ok(())
    })
    .await?;
    tracing::info!(pool, backend = address, "backend removed");
    let (status, answer) = match backend_view(&admin, &pool, &address) {
        Ok(left) => (StatusCode::ACCEPTED, json!({ "removed": false, "in_flight": left.in_flight() })),
        Err(_) => (StatusCode::OK, json!({ "removed": true })),
    };
    Ok(changed(&admin, status, answer).await)
}

pub async fn reload(State(admin): State<Arc<Admin>>) -> Answer {
    let control = Arc::clone(&admin.control);
    // A task of its own, which goes on and tells in the log how it ended when nobody waits any more.
    let reloading = tokio::spawn(async move {
        let reloaded = tokio::task::spawn_blocking(move || control.reload()).await;
        match reloaded.map_err(|_| Problem::internal())? {
            Ok(reload) => {
                tracing::info!(version = reload.version, warnings = ?reload.warnings, "configuration reloaded");
                Ok(reload)
            }
            Err(ReloadError::Invalid(problems)) => {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                tracing::warn!(?problems, "the configuration is not reloaded: the old one stays in force");
                Err(Problem::bad_request(format!("the old configuration stays in force: {}", problems.join("; "))))
            }
            Err(ReloadError::Waiting) => {
                let detail = "a reload waits for the disk already, and will read the configuration file as it is now";
                Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        }
    });
    let Ok(reloaded) = tokio::time::timeout(RELOADING_TIMEOUT, reloading).await else {
        let detail = "the disk does not give the configuration file: the old one stays in force until it does";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let reload = reloaded.map_err(|_| Problem::internal())??;
    let answer = json!({ "version": reload.version, "warnings": reload.warnings });
    Ok(changed(&admin, StatusCode::OK, answer).await)
}

pub async fn config(State(admin): State<Arc<Admin>>) -> Response {
    Json(&admin.control.snapshot().config).into_response()
}

pub async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let metrics = &admin.control.metrics;
    let text = metrics.scrape(|gauges| {
        set_gauges(gauges, &admin.control.snapshot(), Instant::now());
        let room = &admin.room;
        gauges.client_connections.set(i64::try_from(room.taken()).unwrap_or(i64::MAX));
        gauges.client_connections_limit.set(i64::try_from(room.most()).unwrap_or(i64::MAX));
    });
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

pub async fn healthz() -> &'static str {
    "ok\n"
}

/// What `/readyz` may be asked for.
#[derive(Deserialize)]
pub struct Readiness {
    pool: Option<String>,
}

/// Whether the process serves; with `?pool=NAME`, whether that pool has a backend to serve with as well. Without a
/// token, so no answer lists the pools.
pub async fn readyz(State(admin): State<Arc<Admin>>, Query(asked): Query<Readiness>) -> (StatusCode, &'static str) {
    match admin.shutdown.phase() {
        Phase::Starting => return (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Closing | Phase::Stopping => return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        Phase::Running => {}
    }
    let Some(name) = asked.pool else { return (StatusCode::OK, "ready\n") };
    match admin.control.snapshot().pools.iter().find(|pool| pool.name.as_str() == name) {
        Some(pool) if pool.is_available() => (StatusCode::OK, "ready\n"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "no backend\n"),
        None => (StatusCode::NOT_FOUND, "no such pool\n"),
    }
}

pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

pub async fn method_not_allowed(uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take this method", uri.path()))
}

/// The answer to a change that is in force. It waits a while for the disk, and says so where a restart would lose
/// the change.
async fn changed(admin: &Admin, status: StatusCode, answer: impl Serialize) -> Response {
    #[derive(Serialize)]
    struct Changed<T> {
        #[serde(flatten)]
        answer: T,
        #[serde(skip_serializing_if = "Option::is_none")]
        persistence: Option<Persistence>,
    }
    let persistence = admin.control.persistence(SAVING_TIMEOUT).await;
    let persistence = Some(persistence).filter(|p| matches!(p, Persistence::Pending | Persistence::Failed));
    (status, Json(Changed { answer, persistence })).into_response()
}

/// Runs a change where it may take its time.
async fn change<T: Send + 'static>(
    admin: &Admin,
    change: impl FnOnce(&Control) -> Result<T, ChangeError> + Send + 'static,
) -> Result<T, Problem> {
    let control = Arc::clone(&admin.control);
    let changed = tokio::task::spawn_blocking(move || change(&control)).await;
    changed.map_err(|_| Problem::internal())?.map_err(Problem::from)
}

fn parse<T: DeserializeOwned>(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<T, Problem> {
    let is_json = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().is_some_and(|media| media.trim().eq_ignore_ascii_case("application/json"))
    });
    if !is_json {
        let detail = "send the body as \"Content-Type: application/json\"";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    let body = body.map_err(|rejection| Problem::new(rejection.status(), "the body must not be over 64 KiB"))?;
    serde_json::from_slice(&body).map_err(|e| Problem::bad_request(format!("the body is not what is expected: {e}")))
}

fn weight(weight: Option<i64>) -> Result<Option<Weight>, Problem> {
    let read = |weight: i64| {
        let error = || format!("weight {weight} is not from 1 to {}", Weight::MAX);
        u32::try_from(weight).map_err(|_| error()).and_then(Weight::try_from)
    };
    weight.map(read).transpose().map_err(Problem::bad_request)
}

fn state(state: Option<String>) -> Result<Option<AdminState>, Problem> {
    state.map(|state| state.parse()).transpose().map_err(Problem::bad_request::<String>)
}

fn backend_view(admin: &Admin, pool: &str, address: &str) -> Result<BackendView, Problem> {
    let snapshot = admin.control.snapshot();
    let pool = snapshot.pools.iter().find(|p| p.name.as_str() == pool);
    let view = pool.and_then(|pool| BackendView::find(pool, address, Instant::now()));
    view.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, "the backend has left meanwhile"))
}

impl Problem {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    fn bad_request<S: Into<String>>(detail: S) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the change failed; nothing is known to have changed")
    }
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let status = match error {
            ChangeError::NoPool { .. } | ChangeError::NoBackend { .. } => StatusCode::NOT_FOUND,
            ChangeError::Exists { .. } => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body<'a> {
            r#type: &'a str,
            title: &'a str,
            status: u16,
            detail: &'a str,
        }
        let title = self.status.canonical_reason().unwrap_or("Error");
        let body = Body { r#type: "about:blank", title, status: self.status.as_u16(), detail: &self.detail };
        (self.status, [(header::CONTENT_TYPE, "application/problem+json")], Json(body)).into_response()
    }
}
