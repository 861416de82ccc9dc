//! Many streams that share a connection, in any order of what can happen to them. Each is a task that is polled when it
//! is woken and never else, as a runtime does: a wake-up that is lost shows as a stream that stands still.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::frame::{FIRST_WINDOW, MAX_WINDOW, PREFACE, raw as frame};
use super::*;

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A task: a flag that says that it is to be polled.
#[derive(Clone)]
struct Task(Arc<Flag>);

impl Task {
    fn new() -> Self {
        Self(Arc::new(Flag(AtomicBool::new(true))))
    }

    fn wake(&self) {
        self.0.0.store(true, Ordering::Relaxed);
    }

    fn is_woken(&self) -> bool {
        self.0.0.load(Ordering::Relaxed)
    }

    fn begin(&self) -> Waker {
        self.0.0.store(false, Ordering::Relaxed);
        Waker::from(Arc::clone(&self.0))
    }
}

/// Serves one stream: it writes what its backend has given, and reads what the client sends.
struct Server {
    task: Task,
    stream: Http2Stream,
    in_hand: VecDeque<u8>,
    given: usize,
    has_ended: bool,
}

impl Server {
    fn new(stream: Http2Stream) -> Self {
        Self { task: Task::new(), stream, in_hand: HEAD.iter().copied().collect(), given: 0, has_ended: false }
    }

    fn give(&mut self, count: usize) {
        if !self.has_ended {
            self.in_hand.extend(format!("{count:x}\r\n").into_bytes());
            self.in_hand.extend(std::iter::repeat_n(b'x', count));
            self.in_hand.extend(b"\r\n");
            self.given += count;
            self.task.wake();
        }
    }

    /// With trailers where an odd number of bytes was given.
    fn end(&mut self) {
        self.end_with(if self.given.is_multiple_of(2) { "" } else { "x-sum: 1\r\n" });
    }

    fn end_with(&mut self, trailers: &str) {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.in_hand.extend(format!("0\r\n{trailers}\r\n").into_bytes());
            self.task.wake();
        }
    }

    /// False: its stream is over.
    fn poll(&mut self) -> bool {
        let waker = self.task.begin();
        let mut cx = Context::from_waker(&waker);
        while !self.in_hand.is_empty() {
            // As much at once as a transfer has.
            let piece: Vec<u8> = self.in_hand.iter().take(64 * 1024).copied().collect();
            match Pin::new(&mut self.stream).poll_write(&mut cx, &piece) {
                Poll::Ready(Ok(count)) => drop(self.in_hand.drain(..count)),
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => break,
            }
        }
        if self.in_hand.is_empty()
            && let Poll::Ready(Err(_)) = Pin::new(&mut self.stream).poll_flush(&mut cx)
        {
            return false;
        }
        let mut scrap = [0; 4096];
        for _ in 0..16 {
            let mut scrap = ReadBuf::new(&mut scrap);
            match Pin::new(&mut self.stream).poll_read(&mut cx, &mut scrap) {
                Poll::Ready(Ok(())) if scrap.filled().is_empty() => return true,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => return true,
            }
        }
        self.task.wake();
        true
    }
}

/// What the client has been sent on a stream.
#[derive(Default)]
struct Came {
    content: usize,
    has_ended: bool,
}

struct World {
    link: Arc<Link>,
    driver: Task,
    servers: Vec<(u32, Server)>,
    came: HashMap<u32, Came>,
    /// What the socket has taken and is no whole frame.
    taken: Vec<u8>,
    next_id: u32,
    /// The client's windows.
    window: i64,
    first_window: i64,
    windows: HashMap<u32, i64>,
}

impl World {
    fn new() -> Self {
        let link = Arc::new(Link::new(Connection::new(4096), ConnectionTotal::new(std::time::Instant::now()), false));
        let mut new = Self {
            link,
            driver: Task::new(),
            servers: Vec::new(),
            came: HashMap::new(),
            taken: Vec::new(),
            next_id: 1,
            window: FIRST_WINDOW,
            first_window: FIRST_WINDOW,
            windows: HashMap::new(),
        };
        new.receive(&[PREFACE, &frame(4, 0, 0, b"")].concat());
        new
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut connection = self.link.lock();
        if !connection.is_full() {
            assert_eq!(connection.receive(bytes), bytes.len());
            assert_eq!(connection.error(), None);
        }
        drop(connection);
        self.serve();
    }

    fn serve(&mut self) {
        while let Some((id, request)) = { self.link.lock().next_request() } {
            self.servers.push((id, Server::new(Http2Stream::new(Arc::clone(&self.link), id, request))));
        }
    }

    fn open(&mut self, is_end: bool) {
        let block = b"\x82\x86\x84\x41\x01a";
        let id = self.next_id;
        self.next_id += 2;
        self.windows.insert(id, self.first_window);
        self.receive(&frame(1, if is_end { 5 } else { 4 }, id, block));
    }

    fn open_window(&mut self, at: Option<usize>, by: u32) {
        let id = match at {
            None => 0,
            Some(at) => match self.servers.get(at) {
                Some((id, _)) => *id,
                None => return,
            },
        };
        let window = if id == 0 { &mut self.window } else { self.windows.get_mut(&id).expect("a stream") };
        if *window + i64::from(by) <= MAX_WINDOW {
            *window += i64::from(by);
            self.receive(&frame(8, 0, id, &by.to_be_bytes()));
        }
    }

    fn set_window(&mut self, size: u32) {
        let by = i64::from(size) - self.first_window;
        if self.windows.values().all(|window| window + by <= MAX_WINDOW) {
            self.windows.values_mut().for_each(|window| *window += by);
            self.first_window = size.into();
            self.receive(&frame(4, 0, 0, &[&[0, 4][..], &size.to_be_bytes()].concat()));
        }
    }

    fn poll(&mut self, at: usize) {
        if self.servers[at].1.task.is_woken() && !self.servers[at].1.poll() {
            self.servers.remove(at);
        }
    }

    /// The socket takes some, where the connection's task has been woken for it.
    fn take(&mut self, max: usize) {
        if !self.driver.is_woken() {
            return;
        }
        let waker = self.driver.begin();
        let mut connection = self.link.lock();
        let count = connection.unsent().len().min(max);
        self.taken.extend_from_slice(&connection.unsent()[..count]);
        connection.sent(count);
        if !connection.unsent().is_empty() {
            // The socket will say when it takes more.
            self.driver.wake();
        }
        connection.register_driver(&Context::from_waker(&waker));
        drop(connection);
        self.serve();
        self.look();
    }

    /// Looks at the frames that the client has.
    fn look(&mut self) {
        let mut rest = &self.taken[..];
        while let [a, b, c, kind, flags, d, e, f, g, tail @ ..] = rest {
            let Some((payload, tail)) = tail.split_at_checked(u32::from_be_bytes([0, *a, *b, *c]) as usize) else {
                break;
            };
            let (id, len) = (u32::from_be_bytes([*d, *e, *f, *g]), payload.len() as i64);
            let came = self.came.entry(id).or_default();
            if *kind == 0 {
                came.content += payload.len();
                self.window -= len;
                *self.windows.get_mut(&id).expect("a stream") -= len;
                // Those of streams may have become smaller since the frame was queued.
                assert!(self.window >= 0, "more than the connection's window");
            }
            came.has_ended |= *kind < 2 && flags & 1 == 1;
            rest = tail;
        }
        self.taken = rest.to_vec();
    }

    /// Lets everybody who was woken go on, until nobody is.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            let mut at = 0;
            while at < self.servers.len() {
                let before = self.servers.len();
                self.poll(at);
                at += usize::from(self.servers.len() == before);
            }
            self.take(usize::MAX);
            if !self.driver.is_woken() && self.servers.iter().all(|(_, server)| !server.task.is_woken()) {
                return;
            }
        }
        panic!("there is no end to it");
    }

    fn is_served(&mut self) {
        self.settle();
        self.assert_sound();
        for (id, server) in &self.servers {
            assert!(server.in_hand.is_empty(), "{id} stands still with {} bytes", server.in_hand.len());
            let came = &self.came[id];
            assert_eq!((came.content, came.has_ended), (server.given, server.has_ended), "{id}");
        }
    }

    fn assert_sound(&self) {
        let is_awake = |id| self.servers.iter().any(|(other, server)| *other == id && server.task.is_woken());
        self.link.lock().assert_sound(is_awake);
    }

    fn widen(&mut self) {
        self.set_window(1 << 20);
        self.open_window(None, 1 << 30);
        for at in 0..self.servers.len() {
            self.open_window(Some(at), 1 << 28);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Happens {
    Opens(bool),
    Gives(usize, usize),
    Ends(usize),
    Polls(usize),
    Takes(usize),
    Window(Option<usize>, u32),
    FirstWindow(u32),
    Content(usize),
    Resets(usize),
    Leaves(usize),
    Aborts(usize),
    Settles,
}

/// `is_even`: what is given fills whole frames, so that only what delimits it is left behind them.
fn happens(is_even: bool) -> impl Strategy<Value = Happens> {
    let at = || 0..14_usize;
    let size = prop_oneof![Just(1), Just(16_383), Just(16_384), 1..40_000_usize, Just(100_000)];
    let size = size.prop_map(move |size| if is_even { size.next_multiple_of(16_384) } else { size });
    let window = || prop_oneof![Just(1_u32), Just(10), Just(16_384), Just(65_535), 1..200_000_u32];
    let window = move || window().prop_map(move |by| if is_even { by.next_multiple_of(16_384) } else { by });
    prop_oneof![
        4 => any::<bool>().prop_map(Happens::Opens),
        10 => (at(), size).prop_map(|(at, size)| Happens::Gives(at, size)),
        2 => at().prop_map(Happens::Ends),
        12 => at().prop_map(Happens::Polls),
        6 => prop_oneof![1..2_000_usize, Just(20_000), Just(1 << 20)].prop_map(Happens::Takes),
        3 => (at(), window()).prop_map(|(at, by)| Happens::Window(Some(at), by)),
        2 => window().prop_map(|by| Happens::Window(None, by)),
        1 => prop_oneof![Just(0_u32), Just(1), Just(1_000), 0..200_000_u32].prop_map(Happens::FirstWindow),
        1 => at().prop_map(Happens::Content),
        1 => at().prop_map(Happens::Resets),
        1 => at().prop_map(Happens::Leaves),
        1 => at().prop_map(Happens::Aborts),
        1 => Just(Happens::Settles),
    ]
}

fn goes(world: &mut World, happens: Happens) {
    let id_of = |world: &World, at: usize| world.servers.get(at).map(|(id, _)| *id);
    match happens {
        Happens::Opens(is_end) if world.servers.len() < 14 => world.open(is_end),
        Happens::Opens(_) => {}
        Happens::Gives(at, count) => world.servers.get_mut(at).into_iter().for_each(|(_, server)| server.give(count)),
        Happens::Ends(at) => world.servers.get_mut(at).into_iter().for_each(|(_, server)| server.end()),
        Happens::Polls(at) if at < world.servers.len() => world.poll(at),
        Happens::Takes(max) => world.take(max),
        Happens::Window(at, by) => world.open_window(at, by),
        Happens::FirstWindow(size) => world.set_window(size),
        Happens::Content(at) => {
            if let Some(id) = id_of(world, at)
                && !matches!(world.servers[at].1.stream.input, Input::Ended)
            {
                world.receive(&frame(0, 0, id, b"content"));
            }
        }
        Happens::Resets(at) => {
            if let Some(id) = id_of(world, at) {
                world.receive(&frame(3, 0, id, &[0, 0, 0, 8]));
            }
        }
        Happens::Leaves(at) if at < world.servers.len() => drop(world.servers.remove(at)),
        Happens::Aborts(at) if at < world.servers.len() => world.servers.remove(at).1.stream.abort(),
        Happens::Polls(_) | Happens::Leaves(_) | Happens::Aborts(_) => {}
        Happens::Settles => world.settle(),
    }
    world.assert_sound();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_makes_progress_in_any_order_of_events(
        all in any::<bool>().prop_flat_map(|is_even| vec(happens(is_even), 1..120)),
        opens in 0..12_usize,
    ) {
        let mut world = World::new();
        (0..opens).for_each(|_| world.open(true));
        for happens in all {
            goes(&mut world, happens);
        }
        world.widen();
        world.is_served();
        // Some more, for all.
        world.servers.iter_mut().for_each(|(_, server)| server.give(40_000));
        world.is_served();
        world.servers.iter_mut().for_each(|(_, server)| server.end());
        world.is_served();
    }
}

// They kept their turns: four of them had all the room there is, and the connection stood still.
#[test]
fn streams_whose_backends_pause_do_not_block_others() {
    let mut world = World::new();
    world.widen();
    for _ in 0..10 {
        world.open(true);
    }
    world.widen();
    world.settle();
    world.servers[9].1.give(1 << 20);
    world.poll(9);
    for at in 0..8 {
        world.servers[at].1.give(16_384);
        world.poll(at);
    }
    world.settle();
    world.servers[8].1.give(10);
    world.is_served();
}

// The same by the connection's window: what is left of a chunk needs none, and needs no turn either.
#[test]
fn the_end_of_a_chunk_takes_no_place_in_the_queue() {
    let mut world = World::new();
    world.set_window(1 << 20);
    for _ in 0..6 {
        world.open(true);
    }
    for at in 0..4 {
        world.servers[at].1.give(16_383);
    }
    world.servers[4].1.give(3);
    world.settle();
    assert_eq!(world.window, 0);
    world.servers[5].1.give(200_000);
    world.settle();
    world.open_window(None, 1_000_000);
    world.is_served();
}

// Who had just written came first again whenever the window was opened by a little.
#[test]
fn a_window_that_is_opened_by_little_is_shared() {
    let mut world = World::new();
    world.set_window(1 << 20);
    for _ in 0..4 {
        world.open(true);
    }
    world.servers.iter_mut().for_each(|(_, server)| server.give(200_000));
    world.settle();
    let before: Vec<_> = [1, 3, 5, 7].map(|id| world.came[&id].content).to_vec();
    for _ in 0..8 {
        world.open_window(None, 10_000);
        world.settle();
    }
    let grown: Vec<_> = [1, 3, 5, 7].iter().zip(before).map(|(id, before)| world.came[id].content - before).collect();
    assert!(grown.iter().all(|grown| *grown == 20_000), "{grown:?}");
}

// They were queued behind whatever was queued before.
#[test]
fn trailers_wait_for_room() {
    let mut world = World::new();
    world.set_window(1 << 20);
    world.open_window(None, 1 << 30);
    for _ in 0..14 {
        world.open(true);
    }
    world.settle();
    world.servers[13].1.give(1 << 20);
    world.poll(13);
    for at in 0..13 {
        world.servers[at].1.end_with(&format!("x-long: {}\r\n", "x".repeat(8_000)));
        world.poll(at);
    }
    let unsent = world.link.lock().unsent().len();
    assert!(unsent < 90_000, "{unsent} bytes");
    world.is_served();
}
