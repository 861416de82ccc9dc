//! The web application that Evenkeel balances: accounts, posts and pictures on server-rendered pages.
//!
//! Any instance may serve any request, because nothing that matters lives in the process. A request's way, and the
//! order to read in:
//!
//! 1. [`config`] turns flags into settings; [`App`] opens the stores.
//! 2. [`server`] accepts connections, bounds slow clients and stops gracefully.
//! 3. [`layers`] names, times, guards and logs each request; [`sessions`] gives it its session.
//! 4. [`routes`] answers it, in the frame of [`page`].
//! 5. [`attempts`] bounds how often a login may fail; [`history`] records it.
//! 6. [`data`], [`sessions`] and [`media`] are the stores, each a small trait with its contract; [`observed`]
//!    times them, and [`retry`] says how long those on the network may keep a request waiting.
//!
//! [`demo`] runs a balancer and three instances on one machine.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test says what went wrong by failing"))]

// The path of a request.
pub mod config;
pub mod server;

pub mod layers;
pub mod routes;

pub mod error;
pub mod page;

// What it may use.
pub mod attempts;
pub mod data;
pub mod history;
pub mod media;
pub mod passwords;
pub mod recent_writes;
pub mod sessions;

pub mod log;
pub mod metrics;
pub mod observed;
pub mod retry;
pub mod sqlite;
#[cfg(feature = "network")]
pub mod tls;

pub mod demo;
#[cfg(any(test, feature = "contract"))]
mod given_up;
pub mod health;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use http::HeaderValue;

use crate::config::stores::{DataLocation, MediaLocation, SessionsLocation, StoreSettings};
use crate::config::{Instance, Settings};
use crate::data::DataStore;
use crate::data::sqlite::SqliteData;
use crate::history::History;
use crate::media::{MediaStore, ObjectMedia};
use crate::metrics::Metrics;
use crate::observed::Observed;
use crate::passwords::Passwords;
use crate::sessions::SessionStore;
use crate::sessions::sqlite::SqliteSessions;
#[cfg(feature = "network")]
use crate::{
    data::{cratedb::CrateDbData, postgres::PostgresData},
    sessions::redis_cluster::RedisSessions,
};

/// One instance: its settings, its stores and its metrics.
#[derive(Debug)]
pub struct App {
    pub instance: Instance,
    pub name_header: HeaderValue,
    pub settings: Settings,
    pub sessions: Arc<dyn SessionStore>,
    pub data: Arc<dyn DataStore>,
    pub history: History,
    pub media: Arc<dyn MediaStore>,
    pub passwords: Passwords,
    pub picture_checks: media::Checks,
    pub metrics: Arc<Metrics>,
    pub started: Instant,
    leaving: AtomicBool,
}

/// The three stores of an instance.
#[derive(Debug, Clone)]
pub struct Stores {
    pub sessions: Arc<dyn SessionStore>,
    pub data: Arc<dyn DataStore>,
    pub media: Arc<dyn MediaStore>,
}

impl Stores {
    /// The embedded stores in `folder`, which the instances of one machine share. Needs a running runtime, on which
    /// expired sessions are swept.
    pub fn embedded(folder: &Path) -> anyhow::Result<Self> {
        create(folder)?;
        Ok(Self {
            sessions: sqlite_sessions(folder)?,
            data: sqlite_data(folder)?,
            media: media_folder(&folder.join("media"))?,
        })
    }

    /// The stores that the settings name. Waits for a database that is not available yet. Needs a running runtime, on
    /// which stores are swept and watched.
    #[cfg_attr(not(feature = "network"), expect(unused_variables, reason = "embedded stores count nothing"))]
    pub async fn open(settings: &StoreSettings, metrics: &Metrics) -> anyhow::Result<Self> {
        let folder = &settings.folder;
        tracing::info!("sessions in {}, data in {}, media in {}", settings.sessions, settings.data, settings.media);
        Ok(Self {
            sessions: match &settings.sessions {
                SessionsLocation::Sqlite => sqlite_sessions(folder)?,
                #[cfg(feature = "network")]
                SessionsLocation::RedisCluster(redis) => {
                    Arc::new(RedisSessions::new((**redis).clone(), metrics.redis_connections_replaced.clone())?)
                }
            },
            data: match &settings.data {
                DataLocation::Sqlite => sqlite_data(folder)?,
                #[cfg(feature = "network")]
                DataLocation::Postgres(database) => {
                    let data = PostgresData::start(database.clone()).await?;
                    let wire = data.wire().clone();
                    metrics.ask_pool_size(move || wire.pool_size());
                    Arc::new(data)
                }
                #[cfg(feature = "network")]
                DataLocation::CrateDb(database) => {
                    let data = CrateDbData::start(database.clone()).await?;
                    let wire = data.wire().clone();
                    metrics.ask_pool_size(move || wire.pool_size());
                    tokio::spawn(data.clone().watch(metrics.cratedb.clone(), WATCH_INTERVAL));
                    Arc::new(data)
                }
            },
            media: match &settings.media {
                MediaLocation::Folder(folder) => media_folder(folder)?,
                #[cfg(feature = "network")]
                MediaLocation::Bucket(bucket) => Arc::new(ObjectMedia::in_bucket(bucket, std::env::vars())?),
            },
        })
    }
}

fn sqlite_sessions(folder: &Path) -> anyhow::Result<Arc<dyn SessionStore>> {
    create(folder)?;
    let sessions =
        SqliteSessions::open(&folder.join("sessions.sqlite3")).with_context(|| folder_error(folder, "its sessions"))?;
    tokio::spawn(sessions.clone().sweep(SWEEP_INTERVAL));
    Ok(Arc::new(sessions))
}

fn sqlite_data(folder: &Path) -> anyhow::Result<Arc<dyn DataStore>> {
    create(folder)?;
    let data = SqliteData::open(&folder.join("data.sqlite3")).with_context(|| folder_error(folder, "its data"))?;
    Ok(Arc::new(data))
}

fn media_folder(folder: &Path) -> anyhow::Result<Arc<dyn MediaStore>> {
    let media = ObjectMedia::in_folder(folder);
    Ok(Arc::new(media.with_context(|| format!("cannot keep pictures in the folder {}", folder.display()))?))
}

fn create(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder_error(folder, "it; choose one that may be written"))
}

fn folder_error(folder: &Path, what: &str) -> String {
    format!("the folder of --data-dir, {}: cannot open {what}", folder.display())
}

impl App {
    pub fn new(
        instance: Instance,
        settings: Settings,
        stores: Stores,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Arc<Self>> {
        let data: Arc<dyn DataStore> = Observed::new(stores.data, &metrics);
        Ok(Arc::new(Self {
            name_header: HeaderValue::try_from(&instance.name)?,
            sessions: Observed::new(stores.sessions, &metrics),
            history: History::new(Arc::clone(&data), metrics.logins_unrecorded.clone()),
            data,
            media: Observed::new(stores.media, &metrics),
            passwords: Passwords::new(settings.password_cost, settings.password_jobs)?,
            picture_checks: media::Checks::default(),
            metrics,
            started: Instant::now(),
            leaving: AtomicBool::new(false),
            instance,
            settings,
        }))
    }

    /// Reports from now on that this instance should get no new requests.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }
}

const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
#[cfg(feature = "network")]
const WATCH_INTERVAL: Duration = Duration::from_secs(15);
