//! Members who use their sessions while something goes on, and a record of how it went for them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use app::sessions::redis_cluster::RedisSessions;
use app::sessions::{Id, Record, SessionStore, contract};
use prometheus::IntCounter;
use serde_json::json;
use time::OffsetDateTime;
use tokio::task::JoinHandle;

pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Done>>>,
    members: Vec<JoinHandle<Vec<Kept>>>,
    /// What takes longer is felt.
    slow: Duration,
}

/// One operation.
#[derive(Clone, Copy)]
struct Done {
    member: usize,
    begun: Instant,
    ended: Instant,
    succeeded: bool,
}

/// A session as its owner knows it.
struct Kept {
    id: Id,
    /// The last change that was acknowledged.
    number: u64,
    /// Changes that were acknowledged and then not found.
    stepped_back: usize,
}

/// What became of everything.
pub struct Outcome {
    failed: usize,
}

impl Load {
    /// Returns once every member has a session and uses it.
    pub async fn start(store: &RedisSessions) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(Mutex::new(Vec::new()));
        let members = (0..MEMBERS)
            .map(|number| tokio::spawn(member(number, store.clone(), Arc::clone(&stop), Arc::clone(&done))))
            .collect();
        let mut load = Self { stop, done, members, slow: SLOW };
        while load.done.lock().unwrap().len() < 10 * MEMBERS {
            tokio::time::sleep(STEP).await;
        }
        // A busy machine is slow without any fault.
        load.slow = SLOW.max(3 * load.done.lock().unwrap().iter().map(Done::time).max().unwrap_or_default());
        load
    }

    /// Waits until what `begun` is over: everyone succeeds again, and quickly. Prints how long it was felt.
    pub async fn settles(&self, what: &str, begun: Instant, limit: Duration) {
        loop {
            tokio::time::sleep(STEP).await;
            let done = self.done.lock().unwrap().clone();
            let recent: Vec<_> = done.iter().filter(|one| one.begun > begun).collect();
            let is_bad = |one: &Done| !one.succeeded || one.time() > self.slow;
            let felt = recent.iter().filter(|one| is_bad(one)).map(|one| one.ended).max();
            let since = felt.unwrap_or(begun);
            // Of everyone: who still waits has nothing recorded yet.
            let calm = |member| recent.iter().filter(|one| one.member == member && one.begun > since).count() > 20;
            // As long again without trouble as a failover takes to begin.
            if since.elapsed() > CALM && (0..MEMBERS).all(calm) {
                let failed = recent.iter().filter(|one| !one.succeeded).count();
                let slowest = recent.iter().map(|one| one.time()).max().unwrap_or_default();
                println!(
                    "| {what} | felt for {:.1} s | {failed} of {} operations failed | slowest {:.1} s |",
                    (since - begun).as_secs_f64(),
                    recent.len(),
                    slowest.as_secs_f64()
                );
                return;
            }
            assert!(begun.elapsed() < limit + CALM + Duration::from_secs(5), "{what} is still felt after {limit:?}");
        }
    }

    /// Ends the load and proves that every session is still there.
    pub async fn stop(self, what: &str, store: &RedisSessions, replaced: &IntCounter) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut sessions = Vec::new();
        for member in self.members {
            sessions.extend(member.await.unwrap());
        }
        let mut gone = 0;
        for kept in &sessions {
            let found = store.load(&kept.id).await.unwrap().session();
            gone += usize::from(found.is_none_or(|found| number(&found) < kept.number));
        }
        let done = self.done.lock().unwrap();
        let failed = done.iter().filter(|one| !one.succeeded).count();
        let stepped_back: usize = sessions.iter().map(|kept| kept.stepped_back).sum();
        println!(
            "| {what}, in all | {} sessions, {gone} lost | {failed} of {} operations failed | {stepped_back} \
             acknowledged changes lost | connections replaced {} times |",
            sessions.len(),
            done.len(),
            replaced.get()
        );
        assert_eq!(gone, 0, "sessions are lost that were acknowledged");
        // Replication is asynchronous: what a master acknowledged in its last moment may never reach its replica.
        assert!(stepped_back <= MEMBERS, "more changes are lost than can have been under way");
        Outcome { failed }
    }
}

impl Done {
    fn time(&self) -> Duration {
        self.ended - self.begun
    }
}

impl Outcome {
    #[track_caller]
    pub fn allows_failures(self, most: usize) {
        assert!(self.failed <= most, "{} operations failed", self.failed);
    }
}

/// Changes and reads sessions, one operation after the other, and begins a new session now and then.
async fn member(member: usize, store: RedisSessions, stop: Arc<AtomicBool>, done: Arc<Mutex<Vec<Done>>>) -> Vec<Kept> {
    let note = |begun, succeeded| done.lock().unwrap().push(Done { member, begun, ended: Instant::now(), succeeded });
    let mut sessions: Vec<Kept> = Vec::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(STEP).await;
        turn += 1;
        if sessions.is_empty() || turn % 20 == 0 {
            let record = numbered(Id::default(), 0);
            let begun = Instant::now();
            let created = store.create(&record).await;
            note(begun, created.is_ok());
            // An id that is taken was written by an attempt whose answer was lost: nobody is told of it.
            if matches!(created, Ok(true)) {
                sessions.push(Kept { id: record.id, number: 0, stepped_back: 0 });
            }
            continue;
        }
        let count = sessions.len();
        let kept = &mut sessions[turn % count];
        let begun = Instant::now();
        match store.load(&kept.id).await {
            Ok(found) => {
                note(begun, true);
                // A change whose answer was lost may be there or not; one that was acknowledged should be.
                let found = found.session().as_ref().map_or(0, number);
                kept.stepped_back += usize::from(found < kept.number);
                kept.number = found;
            }
            Err(_) => note(begun, false),
        }
        let begun = Instant::now();
        let saved = store.save(&numbered(kept.id, kept.number + 1)).await;
        note(begun, saved.is_ok());
        if matches!(saved, Ok(true)) {
            kept.number += 1;
        }
    }
    sessions
}

fn numbered(id: Id, number: u64) -> Record {
    let mut record = contract::record(OffsetDateTime::now_utc() + time::Duration::hours(1));
    record.id = id;
    record.data.insert("number".into(), json!(number));
    record
}

fn number(record: &Record) -> u64 {
    record.data["number"].as_u64().unwrap()
}

const MEMBERS: usize = 12;
const STEP: Duration = Duration::from_millis(20);
/// What a person would notice.
const SLOW: Duration = Duration::from_millis(300);
const CALM: Duration = Duration::from_secs(3);
