//! The request handlers. Changes run where blocking is allowed, since the snapshot of large pools takes time to build.
//! Their responses wait for the disk for a limited time.

use std::num::NonZero;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::Admin;
use super::view::{BackendView, CertificateView, PoolView, PoolsView, set_certificates, set_gauges};
use crate::backend::Backend;
use crate::change::{Author, Change, Edit, Edits};
use crate::clock;
use crate::config::algorithm::Algorithm;
use crate::config::backend::{AdminState, BackendAddress, Weight};
use crate::config::toml::deadline;
use crate::config::{BackendConfig, PoolConfig};
use crate::control::kill::DrainOutcome;
use crate::control::{ChangeError, ChangeOptions, ChangeOutcome, ChangeRequest, ReloadError};
use crate::pool::Pool;
use crate::shutdown::Phase;
use crate::state::Persistence;

/// How long the response to a change waits for the state file to be written.
const SAVING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the response to a reload waits for the file to be read.
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
    max_connections: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reset {
    pool: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeBackend {
    weight: Option<i64>,
    state: Option<String>,
}

pub(super) async fn algorithms(State(admin): State<Arc<Admin>>) -> Response {
    let snapshot = admin.control.snapshot();
    let pools: Vec<_> =
        snapshot.pools.iter().map(|pool| json!({ "pool": pool.name, "algorithm": pool.plan().algorithm })).collect();
    let answer = Json(json!({ "version": snapshot.version, "choices": Algorithm::ALL, "pools": pools }));
    with_etag(answer.into_response(), &admin.control.etag(&snapshot.config))
}

pub(super) async fn switch_algorithm(
    State(admin): State<Arc<Admin>>,
    options: ChangeOptions,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let wanted: SwitchAlgorithm = parse(&headers, body)?;
    let to: Algorithm = wanted.algorithm.parse().map_err(Problem::bad_request)?;
    let before = admin.control.snapshot().config.clone();
    let outcome = change(&admin, ChangeRequest::Algorithm { pool: wanted.pool.clone(), to }, &options).await?;
    let previous = |pool: &PoolConfig| {
        let edited = outcome.edits.iter().find_map(|edit| match edit {
            Edit::Algorithm { pool: edited, before, .. } if *edited == pool.name => Some(*before),
            _ => None,
        });
        edited.unwrap_or(to)
    };
    let wanted =
        before.pools.iter().filter(|pool| wanted.pool.as_deref().is_none_or(|name| pool.name.as_str() == name));
    let pools: Vec<_> =
        wanted.map(|pool| json!({ "pool": pool.name, "previous": previous(pool), "current": to })).collect();
    Ok(changed(&admin, StatusCode::OK, json!({ "version": outcome.version, "pools": pools }), &options, &outcome).await)
}

pub(super) async fn pools(State(admin): State<Arc<Admin>>) -> Response {
    let (snapshot, now) = (admin.control.snapshot(), Instant::now());
    let configured = snapshot.pools.iter().map(|pool| PoolView::new(pool, now));
    let pools = configured.chain(snapshot.leaving.iter().map(|pool| PoolView::leaving(pool, now))).collect();
    let (drift, awaiting_restart) = (admin.control.drift().len(), admin.control.awaiting_restart());
    let certificates = CertificateView::of(&admin.control.certificates());
    Json(PoolsView { version: snapshot.version, drift, awaiting_restart, certificates, pools }).into_response()
}

pub(super) async fn pool(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Answer {
    let snapshot = admin.control.snapshot();
    let now = Instant::now();
    let is_it = |pool: &&Arc<Pool>| pool.name.as_str() == name;
    let configured = snapshot.pools.iter().find(is_it).map(|pool| PoolView::new(pool, now));
    let found = configured.or_else(|| snapshot.leaving.iter().find(is_it).map(|pool| PoolView::leaving(pool, now)));
    let view = found.ok_or_else(|| {
        let names: Vec<_> = snapshot.pools.iter().map(|pool| pool.name.as_str()).collect();
        Problem::new(StatusCode::NOT_FOUND, format!("there is no pool \"{name}\"; the pools are {}", names.join(", ")))
    })?;
    Ok(Json(view).into_response())
}

pub(super) async fn add_backend(
    State(admin): State<Arc<Admin>>,
    Path(pool): Path<String>,
    options: ChangeOptions,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let wanted: AddBackend = parse(&headers, body)?;
    let address: BackendAddress = wanted.address.parse().map_err(Problem::bad_request)?;
    let backend = BackendConfig {
        weight: weight(wanted.weight)?.unwrap_or(Weight::ONE),
        state: state(wanted.state)?.unwrap_or(AdminState::Active),
        max_connections: max_connections(wanted.max_connections)?,
        ..BackendConfig::new(address.clone())
    };
    let outcome = change(&admin, ChangeRequest::AddBackend { pool: pool.clone(), backend }, &options).await?;
    let status = if options.dry_run { StatusCode::OK } else { StatusCode::CREATED };
    Ok(changed(&admin, status, backend_view(&admin, &pool, address.as_str()), &options, &outcome).await)
}

pub(super) async fn change_backend(
    State(admin): State<Arc<Admin>>,
    Path((pool, backend)): Path<(String, String)>,
    options: ChangeOptions,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let wanted: ChangeBackend = parse(&headers, body)?;
    let (weight, state) = (weight(wanted.weight)?, state(wanted.state)?);
    if weight.is_none() && state.is_none() {
        return Err(Problem::bad_request("give a weight, a state or both"));
    }
    let leaving = find_backend(&admin, &pool, &backend);
    let request = ChangeRequest::ChangeBackend { pool: pool.clone(), backend: backend.clone(), weight, state };
    let outcome = change(&admin, request, &options).await?;
    let drained = at_deadline(&admin, &pool, leaving, &options).await?;
    let answer = ChangedBackend { answer: backend_view(&admin, &pool, &backend), drained };
    Ok(changed(&admin, StatusCode::OK, answer, &options, &outcome).await)
}

pub(super) async fn remove_backend(
    State(admin): State<Arc<Admin>>,
    Path((pool, backend)): Path<(String, String)>,
    options: ChangeOptions,
) -> Answer {
    let leaving = find_backend(&admin, &pool, &backend);
    let outcome =
        change(&admin, ChangeRequest::RemoveBackend { pool: pool.clone(), backend: backend.clone() }, &options).await?;
    let drained = at_deadline(&admin, &pool, leaving, &options).await?;
    let (status, answer) = match backend_view(&admin, &pool, &backend) {
        Some(_) if options.dry_run => (StatusCode::OK, json!({ "removed": false })),
        Some(left) => (StatusCode::ACCEPTED, json!({ "removed": false, "in_flight": left.in_flight() })),
        None => (StatusCode::OK, json!({ "removed": true })),
    };
    Ok(changed(&admin, status, ChangedBackend { answer, drained }, &options, &outcome).await)
}

/// Kills the exchanges that are open on a backend now. The backend's configured state does not change.
pub(super) async fn kill(
    State(admin): State<Arc<Admin>>,
    Path((pool, address)): Path<(String, String)>,
    options: ChangeOptions,
) -> Answer {
    if options.force || options.deadline.is_some() || options.if_match.is_some() {
        return Err(Problem::bad_request("a kill takes dry_run only"));
    }
    let (backend, state) = find_member(&admin, &pool, &address).ok_or_else(|| {
        Problem::new(StatusCode::NOT_FOUND, format!("no pool \"{pool}\" has a backend {address}: GET /admin/pools"))
    })?;
    let warning = format!("{address} is active and gets new requests as before: drain it to keep them away");
    let warnings: Vec<_> = Some(warning).filter(|_| state == AdminState::Active).into_iter().collect();
    let answer = if options.dry_run {
        let effect = format!("{address}: what is open now would be killed, {} in flight", backend.in_flight());
        json!({ "killed": 0, "in_flight": backend.in_flight(), "dry_run": true, "effects": [effect], "warnings": warnings })
    } else {
        let killed = admin.control.kill(&pool, &backend, &options.author).await;
        json!({ "killed": killed, "in_flight": backend.in_flight(), "warnings": warnings })
    };
    Ok(Json(answer).into_response())
}

/// The recent changes of this process.
pub(super) async fn changes(State(admin): State<Arc<Admin>>) -> Response {
    let changes = admin.control.changes();
    let changes: Vec<&Change> = changes.iter().map(Arc::as_ref).collect();
    Json(json!({ "changes": changes })).into_response()
}

pub(super) async fn undo(State(admin): State<Arc<Admin>>, Path(id): Path<String>, options: ChangeOptions) -> Answer {
    let id =
        id.parse().map_err(|_| Problem::bad_request(format!("\"{id}\" is not the id of a change: write a number")))?;
    let outcome = change(&admin, ChangeRequest::Undo(id), &options).await?;
    Ok(changed(&admin, StatusCode::OK, json!({ "version": outcome.version }), &options, &outcome).await)
}

/// Resets one pool or all pools to the configuration file.
pub(super) async fn reset(
    State(admin): State<Arc<Admin>>,
    options: ChangeOptions,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Answer {
    let has_body = body.as_ref().map_or(true, |body| !body.is_empty());
    let wanted: Reset = if has_body { parse(&headers, body)? } else { Reset::default() };
    let outcome = change(&admin, ChangeRequest::Reset { pool: wanted.pool }, &options).await?;
    Ok(changed(&admin, StatusCode::OK, json!({ "version": outcome.version }), &options, &outcome).await)
}

/// Differences between the configuration in force and the file.
pub(super) async fn drift(State(admin): State<Arc<Admin>>) -> Response {
    let answer = json!({
        "file": admin.control.path().display().to_string(),
        "edits": admin.control.drift(),
        "awaiting_restart": admin.control.awaiting_restart(),
    });
    Json(answer).into_response()
}

pub(super) async fn reload(State(admin): State<Arc<Admin>>, options: ChangeOptions) -> Answer {
    if options.deadline.is_some() {
        return Err(Problem::bad_request("a reload has no deadline"));
    }
    let (control, dry_run) = (Arc::clone(&admin.control), options.dry_run);
    // Runs in its own task, which continues and logs its result if the client stops waiting.
    let reloading = tokio::spawn(async move {
        let reload = move || match dry_run {
            true => control.reload(options.author, true),
            false => control.reload_and_log(options.author),
        };
        let reloaded = tokio::task::spawn_blocking(reload).await;
        reloaded.map_err(|_| Problem::internal())?.map_err(|error| match error {
            ReloadError::Invalid(problems) => {
                Problem::bad_request(format!("the old configuration stays in force: {}", problems.join("; ")))
            }
            ReloadError::Waiting => {
                let detail = "a reload waits for the disk already, and will read the configuration file as it is now";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail)
            }
        })
    });
    let Ok(reloaded) = tokio::time::timeout(RELOADING_TIMEOUT, reloading).await else {
        let detail = "the disk does not give the configuration file: the old one stays in force until it does";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let reload = reloaded.map_err(|_| Problem::internal())??;
    let mut answer = json!({
        "version": reload.version, "changes": reload.changes, "drift": reload.drift, "warnings": reload.warnings,
    });
    if dry_run {
        answer["dry_run"] = true.into();
    }
    Ok(saved(&admin, StatusCode::OK, answer, &reload.etag).await)
}

pub(super) async fn config(State(admin): State<Arc<Admin>>) -> Response {
    let snapshot = admin.control.snapshot();
    with_etag(Json(&snapshot.config).into_response(), &admin.control.etag(&snapshot.config))
}

pub(super) async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let metrics = &admin.control.metrics;
    let text = metrics.scrape(|gauges| {
        set_gauges(gauges, &admin.control.snapshot(), Instant::now());
        set_certificates(gauges, &admin.control.certificates());
        let client_limit = &admin.client_limit;
        gauges.client_connections.set(i64::try_from(client_limit.in_use()).unwrap_or(i64::MAX));
        gauges.client_connections_limit.set(i64::try_from(client_limit.limit()).unwrap_or(i64::MAX));
    });
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// The query of `/readyz`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Readiness {
    pool: Option<String>,
}

/// Whether the process serves traffic; with `?pool=NAME`, whether that pool has a usable backend, too. Needs no token,
/// so no response lists pools.
pub(super) async fn readyz(
    State(admin): State<Arc<Admin>>,
    asked: Result<Query<Readiness>, QueryRejection>,
) -> (StatusCode, &'static str) {
    let Ok(Query(asked)) = asked else { return (StatusCode::BAD_REQUEST, "the query takes pool=NAME only\n") };
    match admin.shutdown.phase() {
        Phase::Starting => return (StatusCode::SERVICE_UNAVAILABLE, "starting\n"),
        Phase::Closing | Phase::Stopping => return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
        Phase::Running => {}
    }
    if !admin.control.is_accepting() {
        return (StatusCode::SERVICE_UNAVAILABLE, "not accepting\n");
    }
    let Some(name) = asked.pool else { return (StatusCode::OK, "ready\n") };
    match admin.control.snapshot().pools.iter().find(|pool| pool.name.as_str() == name) {
        Some(pool) if pool.is_available() => (StatusCode::OK, "ready\n"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "no backend\n"),
        None => (StatusCode::NOT_FOUND, "no such pool\n"),
    }
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

pub(super) async fn method_not_allowed(uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take this method", uri.path()))
}

/// The response to a change: `answer` is specific to its kind, the rest is common to all.
async fn changed(
    admin: &Admin,
    status: StatusCode,
    answer: impl Serialize,
    options: &ChangeOptions,
    outcome: &ChangeOutcome,
) -> Response {
    #[derive(Serialize)]
    struct Changed<'a, T> {
        #[serde(flatten)]
        answer: T,
        /// The id of the change; null if nothing was changed.
        change: Option<u64>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        dry_run: bool,
        edits: &'a Edits,
        effects: &'a [String],
        warnings: &'a [String],
    }
    let answer = Changed {
        answer,
        change: outcome.change.as_ref().map(|change| change.id),
        dry_run: options.dry_run,
        edits: &outcome.edits,
        effects: &outcome.effects,
        warnings: &outcome.warnings,
    };
    saved(admin, status, answer, &outcome.etag).await
}

/// A response that waits a while for the state file to be written, and warns if a restart would lose changes in force.
async fn saved(admin: &Admin, status: StatusCode, answer: impl Serialize, etag: &str) -> Response {
    #[derive(Serialize)]
    struct Saved<T> {
        #[serde(flatten)]
        answer: T,
        #[serde(skip_serializing_if = "Option::is_none")]
        persistence: Option<Persistence>,
    }
    let persistence = admin.control.persistence(SAVING_TIMEOUT).await;
    let persistence = Some(persistence).filter(|p| matches!(p, Persistence::Pending | Persistence::Failed));
    with_etag((status, Json(Saved { answer, persistence })).into_response(), etag)
}

fn with_etag(mut response: Response, etag: &str) -> Response {
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// The backend after a change, and how its drain ended, if there was a deadline.
#[derive(Serialize)]
struct ChangedBackend<T> {
    #[serde(flatten)]
    answer: T,
    #[serde(flatten)]
    drained: Option<DrainOutcome>,
}

/// Waits until a drained backend has finished or its deadline has passed. Continues if the client stops waiting.
async fn at_deadline(
    admin: &Admin,
    pool: &str,
    backend: Option<Arc<Backend>>,
    options: &ChangeOptions,
) -> Result<Option<DrainOutcome>, Problem> {
    let (Some(after), Some(backend), false) = (options.deadline, backend, options.dry_run) else { return Ok(None) };
    let deadline = clock::now() + after;
    backend.set_deadline(Some(deadline));
    // From here on, activating the backend cancels the deadline.
    let is_active =
        |(found, state): (Arc<Backend>, AdminState)| state == AdminState::Active && Arc::ptr_eq(&found, &backend);
    if find_member(admin, pool, backend.address.as_str()).is_some_and(is_active) {
        backend.set_deadline(None);
    }
    let (control, pool, author) = (Arc::clone(&admin.control), pool.to_owned(), options.author.clone());
    let waiting = tokio::spawn(async move {
        let drained = control.kill_at(deadline, &pool, &backend, &author).await;
        let _ = tokio::task::spawn_blocking(move || control.drop_drained()).await;
        drained
    });
    waiting.await.map(Some).map_err(|_| Problem::internal())
}

fn find_backend(admin: &Admin, pool: &str, address: &str) -> Option<Arc<Backend>> {
    find_member(admin, pool, address).map(|(backend, _)| backend)
}

/// A backend of a pool, and its settings.
fn find_member(admin: &Admin, pool: &str, address: &str) -> Option<(Arc<Backend>, AdminState)> {
    let snapshot = admin.control.snapshot();
    let (index, pool) = snapshot.all_pools().enumerate().find(|(_, found)| found.name.as_str() == pool)?;
    let plan = pool.plan();
    let (member, state) = plan.backends().find(|(member, _)| member.backend.address.as_str() == address)?;
    let is_leaving = index >= snapshot.pools.len();
    Some((Arc::clone(&member.backend), if is_leaving { AdminState::Removing } else { state }))
}

/// Makes a change where blocking is allowed.
async fn change(admin: &Admin, request: ChangeRequest, options: &ChangeOptions) -> Result<ChangeOutcome, Problem> {
    let takes_out = match &request {
        ChangeRequest::RemoveBackend { .. } => true,
        ChangeRequest::ChangeBackend { state, .. } => state.is_some_and(|state| state != AdminState::Active),
        _ => false,
    };
    if options.deadline.is_some() && !takes_out {
        return Err(Problem::bad_request(
            "deadline is for what takes a backend out: DELETE, or PATCH with the state draining or down",
        ));
    }
    let (control, options) = (Arc::clone(&admin.control), options.clone());
    let making = tokio::task::spawn_blocking(move || {
        let outcome = control.make(&request, &options)?;
        // Removes backends without exchanges in flight before the response is sent.
        control.drop_drained();
        Ok::<_, ChangeError>(outcome)
    });
    making.await.map_err(|_| Problem::internal())?.map_err(Problem::from)
}

/// From the query parameters `dry_run`, `force` and `deadline`, and the field `If-Match`.
impl FromRequestParts<Arc<Admin>> for ChangeOptions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Admin>) -> Result<Self, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Options {
            #[serde(default)]
            dry_run: bool,
            #[serde(default)]
            force: bool,
            deadline: Option<String>,
        }
        let author = parts.extensions.get::<Author>().cloned().ok_or_else(Problem::internal)?;
        let Query(options) = Query::<Options>::try_from_uri(&parts.uri).map_err(|e| {
            Problem::bad_request(format!(
                "the query takes dry_run and force, true or false, and deadline, a duration: {}",
                e.body_text()
            ))
        })?;
        let deadline = options.deadline.map(|text| {
            deadline(&text).map_err(|write| Problem::bad_request(format!("deadline is \"{text}\": write {write}")))
        });
        let if_match = parts.headers.get(header::IF_MATCH).map(|field| {
            let tags = field.to_str().unwrap_or_default().split(',');
            tags.map(|tag| tag.trim().to_owned()).collect()
        });
        let deadline = deadline.transpose()?;
        Ok(Self { author, if_match, dry_run: options.dry_run, force: options.force, deadline })
    }
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

/// 0: no limit, as in the configuration.
fn max_connections(max: Option<i64>) -> Result<Option<NonZero<u32>>, Problem> {
    let read = |max: i64| {
        u32::try_from(max).map_err(|_| format!("max_connections {max} is not from 0 (any number) to {}", u32::MAX))
    };
    Ok(max.map(read).transpose().map_err(Problem::bad_request)?.and_then(NonZero::new))
}

fn state(state: Option<String>) -> Result<Option<AdminState>, Problem> {
    state.map(|state| state.parse()).transpose().map_err(Problem::bad_request::<String>)
}

fn backend_view(admin: &Admin, pool: &str, address: &str) -> Option<BackendView> {
    let snapshot = admin.control.snapshot();
    let pool = snapshot.all_pools().find(|p| p.name.as_str() == pool)?;
    BackendView::find(pool, address, Instant::now())
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
            ChangeError::NoPool { .. } | ChangeError::NoBackend { .. } | ChangeError::NoChange { .. } => {
                StatusCode::NOT_FOUND
            }
            ChangeError::Exists { .. }
            | ChangeError::Removing { .. }
            | ChangeError::Reload { .. }
            | ChangeError::Superseded { .. }
            | ChangeError::NoActiveBackend { .. } => StatusCode::CONFLICT,
            ChangeError::NoMatch => StatusCode::PRECONDITION_FAILED,
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
