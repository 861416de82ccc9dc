//! The machine without a socket: what it says to each event, for a plain route and for a walk that asks for everything.

use super::*;
use crate::config::Secret;
use crate::metrics::Metrics;
use crate::site::Found;
use crate::snapshot::{Rings, Snapshot};
use crate::value::variable::Variable;
use crate::value::{Facts, Presence};

fn snapshot(backends: &str, settings: &str) -> Snapshot {
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"app\"\n\
         [[pool]]\nname = \"app\"\nbackends = [{backends}]\n{settings}",
    );
    let config = crate::config::toml::read(&text, std::path::Path::new("/evenkeel.toml")).expect("valid");
    Snapshot::new(config, None, &Rings::default(), &Metrics::new(), &Secret::new("secret").expect("not empty"))
}

/// An exchange over three backends.
fn exchange<W: Walk>(request: &Request, walk: impl FnOnce(usize) -> W) -> Exchange<W> {
    let snapshot = snapshot("\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\"", "retries = 1\n");
    let found = found(&snapshot);
    let info = RequestInfo { is_idempotent: request.is_idempotent, body_length: request.body_length, ..info() };
    Exchange::begin_walk(start(found, info), std::iter::empty(), walk)
}

fn found(snapshot: &Snapshot) -> Found<'_> {
    snapshot.sites.find(Some(0), "a.example", b"/", &NoFacts).expect("a site")
}

fn start(found: Found<'_>, info: RequestInfo) -> ExchangeStart {
    ExchangeStart { site: Arc::clone(found.site), route: found.route, pool_index: 0, request: info }
}

fn info() -> RequestInfo {
    RequestInfo {
        client: Some("192.0.2.1".parse().expect("an address")),
        is_https: false,
        is_idempotent: true,
        body_length: None,
        is_preflight: false,
        now: Instant::now(),
    }
}

struct NoFacts;

impl Facts for NoFacts {
    fn write(&self, _: &Variable, _: &mut Vec<u8>) -> Presence {
        Presence::Missing
    }
}

struct Request {
    is_idempotent: bool,
    body_length: Option<u64>,
}

const GET: Request = Request { is_idempotent: true, body_length: None };

fn direct(_: usize) -> DirectWalk {
    DirectWalk { buffers_body: false, is_preflight: false }
}

impl<W: Walk> Exchange<W> {
    fn tell(&mut self, event: Event<W>) -> Step<W> {
        self.step(event, Moment { now: Instant::now(), client_waited: Duration::ZERO })
    }

    fn fails(&mut self, failure: Failure) -> Step<W> {
        self.tell(Event::Failed { failed: failure.into(), has_body: true })
    }

    /// How many exchanges are counted on the backends.
    fn in_flight(&self) -> u32 {
        self.plan().expect("a pool").backends().map(|(member, _)| member.backend.in_flight()).sum()
    }
}

fn answer<W: Walk>(status: u16) -> Event<W> {
    Event::Head(Answer { status, has_body: true })
}

#[test]
fn a_plain_request_needs_open_pass_and_end() {
    let mut exchange = exchange(&GET, direct);
    assert!(matches!(exchange.tell(Event::Begun), Step::Open(_)));
    assert_eq!(exchange.in_flight(), 1);
    assert!(matches!(exchange.tell(answer(204)), Step::Pass));
    assert!(matches!(exchange.tell(Event::Sent), Step::End));
    assert_eq!(exchange.in_flight(), 0);
    let happened: Vec<_> = exchange.trace.events().iter().map(|event| event.what).collect();
    assert_eq!(
        happened,
        [TraceEventKind::Begun, TraceEventKind::Opened, TraceEventKind::Answered(204), TraceEventKind::Sent]
    );
    let outcome = exchange.finish(Instant::now());
    assert_eq!((outcome.status, outcome.attempts, outcome.failure), (204, 1, None));
}

#[test]
fn a_small_body_is_held_before_a_backend_is_chosen() {
    let snapshot = snapshot("\"127.0.0.1:1\"", "");
    let keep = snapshot.pools[0].plan().settings.retry_body_bytes as u64;
    for (body_length, holds) in
        [(None, false), (Some(0), false), (Some(1), true), (Some(keep), true), (Some(keep + 1), false)]
    {
        let info = RequestInfo { is_idempotent: false, body_length, ..info() };
        let mut exchange = Exchange::begin(start(found(&snapshot), info), std::iter::empty());
        let step = exchange.tell(Event::Begun);
        assert_eq!(matches!(step, Step::BufferBody), holds, "{body_length:?}: {step:?}");
        if holds {
            assert_eq!(exchange.in_flight(), 0);
            assert!(matches!(exchange.tell(Event::BodyBuffered), Step::Open(_)));
        }
    }
}

#[test]
fn a_failure_is_retried_and_then_refused() {
    let mut exchange = exchange(&GET, direct);
    let Step::Open(first) = exchange.tell(Event::Begun) else { panic!("no attempt") };
    let Step::Open(second) = exchange.fails(Failure::Reset) else { panic!("no retry") };
    assert!(!Arc::ptr_eq(&first, &second));
    assert_eq!(exchange.in_flight(), 1);
    let step = exchange.fails(Failure::ResponseTimeout);
    assert!(matches!(step, Step::Refuse(Refusal::Failed(Failure::ResponseTimeout))), "{step:?}");
    assert_eq!(exchange.in_flight(), 0, "a refusal holds no backend");
    assert!(matches!(exchange.tell(Event::Sent), Step::End));
    let outcome = exchange.finish(Instant::now());
    assert_eq!((outcome.status, outcome.attempts), (504, 2));
}

// It went to the end of the queue, and could be told that it had waited too long.
#[test]
fn a_stale_connection_keeps_the_queued_turn() {
    let snapshot = snapshot("{ address = \"127.0.0.1:1\", max_connections = 1 }", "");
    let begin = || Exchange::begin(start(found(&snapshot), info()), std::iter::empty());
    let (mut first, mut second) = (begin(), begin());
    let Step::Open(info) = first.tell(Event::Begun) else { panic!("no attempt") };
    let Step::Queue(full) = second.tell(Event::Begun) else { panic!("two at once") };
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let mut is_called = |place: &Place| std::pin::pin!(place.called()).poll(&mut cx).is_ready();
    let mut place = full.place;
    assert!(!is_called(&place));
    let step = first.fails(Failure::StaleConnection);
    assert!(matches!(&step, Step::Open(again) if Arc::ptr_eq(again, &info)), "{step:?}");
    assert_eq!((first.in_flight(), first.outcome().attempts), (1, 2));
    assert!(!is_called(&place), "nobody else has the turn");
    // After a change of the plan a backend is chosen anew, before the exchanges that wait.
    let mut config = snapshot.config.clone();
    config.pools[0].settings.retries += 1;
    let secret = Secret::new("secret").expect("not empty");
    let _after = Snapshot::new(config, Some(&snapshot), &Rings::default(), &Metrics::new(), &secret);
    assert!(is_called(&place), "there may be room for more");
    let Step::Queue(full) = second.tell(Event::CapacityFreed(place)) else { panic!("two at once") };
    place = full.place;
    assert!(!is_called(&place));
    assert!(matches!(first.fails(Failure::StaleConnection), Step::Open(_)));
    assert!(matches!(first.tell(answer(200)), Step::Pass));
    assert!(matches!(first.tell(Event::Sent), Step::End));
    assert!(is_called(&place));
    assert!(matches!(second.tell(Event::CapacityFreed(place)), Step::Open(_)));
}

/// An exchange whose first backend has failed after 100 ms, while another exchange holds the only connection of the
/// second, and what it does.
fn retry_behind_a_full_backend(settings: &str) -> (Exchange, Exchange, Step, Moment) {
    let snapshot = snapshot("\"127.0.0.1:1\", { address = \"127.0.0.1:2\", max_connections = 1 }", settings);
    let begin = || Exchange::begin(start(found(&snapshot), info()), std::iter::empty());
    let [mut one, mut other] = [begin(), begin()];
    let steps = [one.tell(Event::Begun), other.tell(Event::Begun)];
    let [Step::Open(first), Step::Open(second)] = &steps else { panic!("no attempts: {steps:?}") };
    assert!(!Arc::ptr_eq(first, second));
    let (mut retried, holder) = match first.backend.address.as_str() {
        "127.0.0.1:1" => (one, other),
        _ => (other, one),
    };
    let failed = Event::Failed { failed: Failure::ConnectRefused.into(), has_body: true };
    let at = Moment { now: Instant::now() + Duration::from_millis(100), client_waited: Duration::ZERO };
    let step = retried.step(failed, at);
    (retried, holder, step, at)
}

// It was refused at once, although the queue would have served it in time.
#[test]
fn a_retry_waits_for_a_backend_that_is_full() {
    for (settings, waits) in [
        ("", Some(Duration::from_secs(2))),
        ("retry_timeout = \"500ms\"\n", Some(Duration::from_millis(400))),
        ("retry_timeout = \"100ms\"\n", None),
        ("queue_timeout = \"0s\"\n", None),
    ] {
        let (mut retried, mut holder, step, _) = retry_behind_a_full_backend(settings);
        let Some(limit) = waits else {
            assert!(matches!(step, Step::Refuse(Refusal::Failed(Failure::ConnectRefused))), "{settings}: {step:?}");
            continue;
        };
        let Step::Queue(full) = step else { panic!("{settings}: {step:?}") };
        assert!(full.timeout <= limit && full.timeout > limit - Duration::from_millis(100), "{:?}", full.timeout);
        assert!(matches!(holder.tell(answer(200)), Step::Pass));
        assert!(matches!(holder.tell(Event::Sent), Step::End));
        assert!(matches!(retried.tell(Event::CapacityFreed(full.place)), Step::Open(_)));
    }
}

/// Whether the trace has this time in the queue. Each event's time is cut to microseconds.
fn has_waited(exchange: &Exchange, time: Duration) -> bool {
    exchange.trace(None).queue_time().is_some_and(|waited| waited.abs_diff(time) < Duration::from_micros(5))
}

// It was answered 503 with queue_timeout as the reason.
#[test]
fn a_retry_whose_time_ends_in_the_queue_is_answered_with_its_failure() {
    for (settings, failure) in
        [("retry_timeout = \"500ms\"\n", Failure::ConnectRefused), ("retry_timeout = \"20s\"\n", Failure::QueueTimeout)]
    {
        let (mut retried, _holder, step, at) = retry_behind_a_full_backend(settings);
        let Step::Queue(full) = step else { panic!("{settings}: {step:?}") };
        let at = Moment { now: at.now + full.timeout, ..at };
        let step = retried.step(Event::Failed { failed: Failure::QueueTimeout.into(), has_body: true }, at);
        assert!(matches!(step, Step::Refuse(Refusal::Failed(refused)) if refused == failure), "{settings}: {step:?}");
        assert_eq!(retried.outcome().failure, Some(failure));
        assert!(has_waited(&retried, full.timeout));
    }
}

// Its first wait counted for the second one, which the trace did not have.
#[test]
fn a_retry_may_wait_for_as_long_as_others() {
    let snapshot = snapshot(
        "{ address = \"127.0.0.1:1\", max_connections = 1 }, { address = \"127.0.0.1:2\", max_connections = 1 }",
        "",
    );
    let begin = || Exchange::begin(start(found(&snapshot), info()), std::iter::empty());
    let [mut first, mut second, mut waiting] = [begin(), begin(), begin()];
    let opened = [first.tell(Event::Begun), second.tell(Event::Begun)];
    assert!(matches!(opened, [Step::Open(_), Step::Open(_)]));
    let mut at = Moment { now: Instant::now(), client_waited: Duration::ZERO };
    let Step::Queue(full) = waiting.step(Event::Begun, at) else { panic!("two are in use") };
    let limit = full.timeout;
    assert!(matches!(first.tell(answer(200)), Step::Pass));
    assert!(matches!(first.tell(Event::Sent), Step::End));
    at.now += limit / 2;
    assert!(matches!(waiting.step(Event::CapacityFreed(full.place), at), Step::Open(_)));
    at.now += limit;
    let failed = Event::Failed { failed: Failure::ConnectRefused.into(), has_body: true };
    let Step::Queue(full) = waiting.step(failed, at) else { panic!("the other one is in use") };
    assert_eq!(full.timeout, limit);
    assert!(matches!(second.tell(answer(200)), Step::Pass));
    assert!(matches!(second.tell(Event::Sent), Step::End));
    at.now += limit / 2;
    assert!(matches!(waiting.step(Event::CapacityFreed(full.place), at), Step::Open(_)));
    assert!(has_waited(&waiting, limit));
}

// A backend that crashed over a request was never blamed, and was asked again without limit.
#[test]
fn a_reused_connection_that_ends_late_is_a_failure_of_the_backend() {
    for (taken, client_waited, failure) in [
        (Duration::from_millis(900), Duration::ZERO, Failure::StaleConnection),
        (Duration::from_millis(1100), Duration::ZERO, Failure::Closed),
        (Duration::from_secs(60), Duration::from_secs(60), Failure::StaleConnection),
    ] {
        let mut exchange = exchange(&GET, direct);
        let now = Instant::now();
        let begun = exchange.step(Event::Begun, Moment { now, client_waited: Duration::ZERO });
        let Step::Open(first) = begun else { panic!("no attempt") };
        let failed = Event::Failed { failed: Failure::StaleConnection.into(), has_body: true };
        let step = exchange.step(failed, Moment { now: now + taken, client_waited });
        let Step::Open(next) = step else { panic!("no retry: {step:?}") };
        let is_stale = failure == Failure::StaleConnection;
        assert_eq!(exchange.outcome().failure, Some(failure), "{taken:?}");
        assert_eq!((Arc::ptr_eq(&first, &next), exchange.needs_new_connection()), (is_stale, is_stale), "{taken:?}");
        let failures = first.backend.metrics.failures_of(Failure::Closed);
        assert_eq!(failures, u64::from(!is_stale), "{taken:?}");
    }
}

// A killed request was sent again to another address of the same backend.
#[test]
fn a_killed_exchange_is_retried_on_another_backend_not_another_address() {
    let name = "{ address = \"app.example:80\", weight = 100 }";
    for (others, goes_on) in [(", \"127.0.0.1:3\"", true), ("", false)] {
        let snapshot = snapshot(&format!("{name}{others}"), "retries = 3\n");
        let (pool, now) = (&snapshot.pools[0], Instant::now());
        let addresses = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().expect("an address"));
        for (member, _) in
            pool.plan().backends().filter(|(member, _)| member.backend.address.as_str() == "app.example:80")
        {
            member.backend.resolved(&addresses, now);
        }
        pool.refresh(now);
        let begin = || Exchange::begin_walk(start(found(&snapshot), info()), std::iter::empty(), direct);
        let backend = |step: Step<DirectWalk>| match step {
            Step::Open(endpoint) => Some(endpoint.backend.address.as_str().to_owned()),
            _ => None,
        };
        let mut failing = begin();
        assert_eq!(backend(failing.tell(Event::Begun)).as_deref(), Some("app.example:80"));
        assert_eq!(backend(failing.fails(Failure::Reset)).as_deref(), Some("app.example:80"), "its other address");
        let mut killed = begin();
        assert_eq!(backend(killed.tell(Event::Begun)).as_deref(), Some("app.example:80"));
        assert_eq!(backend(killed.fails(Failure::Killed)).as_deref(), goes_on.then_some("127.0.0.1:3"));
        assert_eq!(killed.outcome().refusal.map(Refusal::status), (!goes_on).then_some(503));
    }
}

#[test]
fn client_errors_are_not_retried_and_end_the_lease() {
    for (failure, refusal, status) in [
        (Failure::ClientTimeout, Some(Refusal::ClientTimeout), 408),
        (Failure::BodyTooLarge, Some(Refusal::BodyTooLarge), 413),
        (Failure::ClientGone, None, 499),
    ] {
        let mut exchange = exchange(&GET, direct);
        exchange.tell(Event::Begun);
        match (exchange.fails(failure), refusal) {
            (Step::Refuse(refused_with), Some(refusal)) => assert_eq!(refused_with, refusal),
            (Step::End, None) => {}
            (step, _) => panic!("{failure:?}: {step:?}"),
        }
        assert_eq!(exchange.in_flight(), 0, "{failure:?}");
        let outcome = exchange.finish(Instant::now());
        assert_eq!((outcome.status, outcome.failure, outcome.attempts), (status, Some(failure), 1));
    }
}

#[test]
fn a_response_that_has_begun_is_never_retried() {
    let mut exchange = exchange(&GET, direct);
    exchange.tell(Event::Begun);
    exchange.tell(answer(200));
    assert!(matches!(exchange.fails(Failure::ResponseTruncated), Step::End));
    let outcome = exchange.finish(Instant::now());
    assert_eq!((outcome.status, outcome.failure), (200, Some(Failure::ResponseTruncated)));
}

#[test]
fn a_client_that_disconnects_during_a_refusal_does_not_change_its_reason() {
    let mut exchange = exchange(&GET, direct);
    exchange.tell(Event::Begun);
    exchange.fails(Failure::BodyTooLarge);
    assert!(matches!(exchange.fails(Failure::ClientGone), Step::End));
    let outcome = exchange.finish(Instant::now());
    assert_eq!((outcome.status, outcome.failure), (413, Some(Failure::BodyTooLarge)));
}

#[test]
fn retry_time_excludes_time_spent_on_the_client() {
    let wait = Duration::from_secs(3600);
    for (client_waited, is_tried) in [(wait, true), (Duration::ZERO, false)] {
        let mut exchange = exchange(&GET, direct);
        let now = Instant::now();
        exchange.step(Event::Begun, Moment { now, client_waited: Duration::ZERO });
        let failed = Event::Failed { failed: Failure::Reset.into(), has_body: true };
        let step = exchange.step(failed, Moment { now: now + wait, client_waited });
        assert_eq!(matches!(step, Step::Open(_)), is_tried, "{step:?}");
    }
}

/// A walk that does what it is told to, and asks for all there is.
#[derive(Debug)]
struct Script {
    steps: std::vec::IntoIter<WalkStep<Script>>,
    /// How many answers are still replaced.
    replaces: u32,
    event: Vec<&'static str>,
}

impl Script {
    fn new(steps: Vec<WalkStep<Self>>, replaces: u32) -> Self {
        Self { steps: steps.into_iter(), replaces, event: Vec::new() }
    }
}

impl Walk for Script {
    type Wait = Duration;
    type Waited = bool;
    type SubRequest = &'static str;

    fn step(&mut self, event: WalkEvent<Self>) -> WalkStep<Self> {
        self.event.push(match event {
            WalkEvent::Begun => "begun",
            WalkEvent::Waited(true) => "waited",
            WalkEvent::Waited(false) => "waited in vain",
            WalkEvent::BodyBuffered => "held",
            WalkEvent::Sub(Answer { status: 200, has_body: true }) => "allowed",
            WalkEvent::Sub(_) => "forbidden",
            WalkEvent::Spawned => "spawned",
        });
        self.steps.next().unwrap_or(WalkStep::Act)
    }

    fn head(&mut self, answer: &Answer) -> HeadVerdict {
        if answer.status != 404 || self.replaces == 0 {
            return HeadVerdict::Pass;
        }
        self.replaces -= 1;
        HeadVerdict::Jump(Jump::Page(0))
    }
}

#[test]
fn a_walk_can_wait_buffer_and_ask_before_it_acts() {
    let wait = Duration::from_millis(1);
    let steps = vec![
        WalkStep::Wait(wait),
        WalkStep::BufferBody,
        WalkStep::Sub("/auth"),
        WalkStep::Spawn("/mirror"),
        WalkStep::Act,
    ];
    let mut exchange = exchange(&GET, |_| Script::new(steps, 0));
    assert!(matches!(exchange.tell(Event::Begun), Step::Wait(info) if info == wait));
    assert!(matches!(exchange.tell(Event::Waited(true)), Step::BufferBody));
    assert!(matches!(exchange.tell(Event::BodyBuffered), Step::Sub("/auth")));
    assert!(matches!(exchange.tell(Event::Sub(Answer { status: 200, has_body: true })), Step::Spawn("/mirror")));
    assert_eq!(exchange.in_flight(), 0);
    assert!(matches!(exchange.tell(Event::Spawned), Step::Open(_)));
    assert_eq!(exchange.walk.event, ["begun", "waited", "held", "allowed", "spawned"]);
    assert!(matches!(exchange.tell(answer(200)), Step::Pass));
}

#[test]
fn a_walk_can_answer_and_the_client_can_disconnect() {
    let mut forbidden =
        exchange(&GET, |_| Script::new(vec![WalkStep::Sub("/auth"), WalkStep::Answer(Refusal::Method)], 0));
    forbidden.tell(Event::Begun);
    assert!(matches!(
        forbidden.tell(Event::Sub(Answer { status: 403, has_body: true })),
        Step::Refuse(Refusal::Method)
    ));
    let outcome = forbidden.finish(Instant::now());
    assert_eq!((outcome.status, outcome.refusal, outcome.attempts), (405, Some(Refusal::Method), 0));

    let mut left = exchange(&GET, |_| Script::new(vec![WalkStep::Wait(Duration::MAX)], 0));
    left.tell(Event::Begun);
    assert!(matches!(left.fails(Failure::ClientGone), Step::End));
    assert_eq!(left.finish(Instant::now()).status, 499);
}

#[test]
fn a_response_is_replaced_ten_times_at_most() {
    let mut replaced = exchange(&GET, |_| Script::new(Vec::new(), 1));
    replaced.tell(Event::Begun);
    assert!(matches!(replaced.tell(answer(404)), Step::Jump(Jump::Page(0))));
    assert_eq!(replaced.in_flight(), 0, "the answer that was thrown away holds no backend");
    assert!(matches!(replaced.tell(Event::Begun), Step::Open(_)));
    assert!(matches!(replaced.tell(answer(404)), Step::Pass));

    let mut endless = exchange(&GET, |_| Script::new(Vec::new(), u32::MAX));
    endless.tell(Event::Begun);
    for _ in 0..MAX_JUMPS {
        assert!(matches!(endless.tell(answer(404)), Step::Jump(_)));
        assert!(matches!(endless.tell(Event::Begun), Step::Open(_)));
    }
    assert!(matches!(endless.tell(answer(404)), Step::Refuse(Refusal::Internal)));
    assert_eq!(endless.in_flight(), 0);
    assert_eq!(endless.finish(Instant::now()).status, 500);
    assert_eq!(endless.trace.lost(), 22 + 2 - 16, "two events each time, and how it began and ended");
}

// It was told of as cut off by the shutdown.
#[test]
fn a_panic_and_a_shutdown_have_different_outcomes() {
    struct Finished<'a>(Exchange, &'a mut Outcome);
    impl Drop for Finished<'_> {
        fn drop(&mut self) {
            *self.1 = self.0.finish(Instant::now());
        }
    }
    let mut outcomes = [Outcome::default(), Outcome::default()];
    let [panicked, dropped] = &mut outcomes;
    for (outcome, panics) in [(panicked, true), (dropped, false)] {
        let mut exchange = exchange(&GET, direct);
        exchange.tell(Event::Begun);
        let finished = Finished(exchange, outcome);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _finished = finished;
            assert!(!panics, "a bug");
        }));
        assert_eq!(ended.is_err(), panics);
    }
    let results = outcomes.map(|outcome| (outcome.status, outcome.failure));
    assert_eq!(results, [(500, Some(Failure::Internal)), (503, Some(Failure::Shutdown))]);
}
