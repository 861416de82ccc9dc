//! Writes lines to a file, a pipe or a terminal from a separate thread, so that nobody who logs a line waits for a disk
//! or a slow reader. The queue is bounded in bytes; beyond that, lines are dropped and counted. The thread starts with
//! the first line, so that a process can open its logs before it forks, as a Pingora server with `daemon` does.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use prometheus::IntCounter;
use rustix::event::{PollFd, PollFlags, poll};

/// Queued lines are written together, up to this size.
const BATCH_BYTES: usize = 64 * 1024;
/// How long lines are collected before they are written.
const GATHERING_TIME: Duration = Duration::from_millis(10);
/// The memory for a queued line besides its text.
const LINE_BYTES: usize = 64;

/// The purpose and the size of a queue.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Used in messages, and as the name of the thread.
    pub name: &'static str,
    /// Limit on queued lines, in bytes.
    pub max_bytes: usize,
    /// Counts lost lines: the queue was full, or writing failed.
    pub lost: IntCounter,
}

/// The sending side.
#[derive(Debug)]
pub struct Queue {
    sender: Sender<Message>,
    shared: Arc<Shared>,
    mode: AtomicU8,
    /// `None` once the thread is started.
    waiting: Mutex<Option<Waiting>>,
}

/// What a [`Queue`] does with a line.
mod mode {
    /// Whoever logs it writes it.
    pub(super) const DIRECT: u8 = 0;
    /// Starts the thread.
    pub(super) const FIRST: u8 = 1;
    /// Passes it to the thread.
    pub(super) const QUEUED: u8 = 2;
}

/// What the thread needs to start.
struct Waiting {
    output: Box<dyn Write + Send>,
    receiver: Receiver<Message>,
    ending: Sender<()>,
}

/// The writing thread. It lives until [`finished`](Self::finish) or [released](Self::release).
#[derive(Debug)]
#[must_use = "lines that still wait are lost unless the writer is finished"]
pub struct Writer {
    /// `None`: it ends with the queue.
    sender: Option<Sender<Message>>,
    /// Receives when the thread has written everything; disconnected if there is no thread and will be none.
    ended: Receiver<()>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    End,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    /// Bytes in the queue.
    waiting: AtomicUsize,
    reopen: AtomicBool,
    /// The thread has been started, or cannot be.
    is_started: AtomicBool,
}

impl Queue {
    /// Writes to standard output.
    pub fn to_stdout(settings: Settings) -> io::Result<(Self, Writer)> {
        let output = Descriptor::of(io::stdout())?;
        Self::start(settings, |_| Ok(output))
    }

    /// Writes to standard error.
    pub fn to_stderr(settings: Settings) -> io::Result<(Self, Writer)> {
        let output = Descriptor::of(io::stderr())?;
        Self::start(settings, |_| Ok(output))
    }

    /// Appends to a file.
    pub fn to_file(path: &Path, settings: Settings) -> io::Result<(Self, Writer)> {
        Self::start(settings, |shared| Reopening::open(path, shared))
    }

    fn start<W: Write + Send + 'static>(
        settings: Settings,
        output: impl FnOnce(Arc<Shared>) -> io::Result<W>,
    ) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = channel();
        let (ending, ended) = channel();
        let shared = Arc::new(Shared {
            settings,
            waiting: AtomicUsize::new(0),
            reopen: AtomicBool::new(false),
            is_started: AtomicBool::new(false),
        });
        let output = Box::new(output(Arc::clone(&shared))?);
        let writer = Writer { sender: Some(sender.clone()), ended, shared: Arc::clone(&shared) };
        let waiting = Mutex::new(Some(Waiting { output, receiver, ending }));
        Ok((Self { sender, shared, mode: AtomicU8::new(mode::FIRST), waiting }, writer))
    }

    /// Until [`Self::use_thread`], whoever logs a line writes it. To be called before the first line.
    pub fn write_directly(&self) {
        self.mode.store(mode::DIRECT, Ordering::Relaxed);
    }

    /// From the next line on, the thread writes.
    pub fn use_thread(&self) {
        // Only the first call has an effect.
        let _ = self.mode.compare_exchange(mode::DIRECT, mode::FIRST, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Queues a line; drops it if the queue is full. Never waits, unless lines are written directly.
    pub fn push(&self, line: Vec<u8>) {
        match self.mode.load(Ordering::Relaxed) {
            mode::QUEUED => {}
            mode::FIRST => self.start_thread(),
            _ => {
                if self.write(&line) {
                    return;
                }
            }
        }
        let Shared { settings, waiting, .. } = &*self.shared;
        let bytes = size(&line);
        let has_room = waiting.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= settings.max_bytes;
        if !has_room || self.sender.send(Message::Line(line)).is_err() {
            waiting.fetch_sub(bytes, Ordering::Relaxed);
            settings.lost.inc();
        }
    }

    /// Writes a line directly. False if the thread has been started meanwhile.
    fn write(&self, line: &[u8]) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Waiting { output, .. }) = &mut *waiting else { return false };
        if output.write_all(line).is_err() {
            self.shared.settings.lost.inc();
        }
        true
    }

    fn start_thread(&self) {
        let Some(waiting) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        self.mode.store(mode::QUEUED, Ordering::Relaxed);
        self.shared.is_started.store(true, Ordering::Relaxed);
        let shared = Arc::clone(&self.shared);
        let write = move || {
            let Waiting { output, receiver, ending } = waiting;
            write_lines(&receiver, BufWriter::with_capacity(BATCH_BYTES, output), &shared);
            // Before the end is known: lines that are pushed after that are counted as lost.
            drop(receiver);
            // Fails if nobody waits for the end.
            let _ = ending.send(());
        };
        let name = self.shared.settings.name;
        if let Err(e) = thread::Builder::new().name(name.replace(' ', "-")).spawn(write) {
            tracing::error!("the {name} cannot be written: no thread can be started: {e}");
        }
    }

    /// Reopens the file before the next line, for rotation.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Relaxed);
    }
}

/// Each call writes one or several whole lines.
impl Write for &Queue {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waiting")
    }
}

impl Writer {
    /// Lets the thread end once the queue is dropped and all its lines are written.
    pub fn release(&mut self) {
        self.sender = None;
    }

    pub fn has_ended(&self) -> bool {
        self.ended.try_recv() != Err(TryRecvError::Empty)
    }

    /// Waits until all queued lines are written, for at most `limit`. Later lines are lost. False: the last lines may
    /// not have been written.
    pub fn finish(self, limit: Duration) -> bool {
        if !self.shared.is_started.load(Ordering::Relaxed) {
            return true;
        }
        // Fails if the thread has ended early, which is detected below.
        let _ = self.sender.map(|sender| sender.send(Message::End));
        self.ended.recv_timeout(limit).is_ok()
    }
}

fn write_lines(queue: &Receiver<Message>, mut output: BufWriter<impl Write>, shared: &Shared) {
    let Settings { name, lost, .. } = &shared.settings;
    let mut report = Report { name, lost, is_failing: false, reported: lost.get() };
    let mut message = queue.recv();
    while let Ok(Message::Line(line)) = message {
        let written = output.write_all(&line);
        shared.waiting.fetch_sub(size(&line), Ordering::Relaxed);
        if written.is_err() {
            lost.inc();
            report.written(written);
        }
        message = match queue.try_recv() {
            Ok(message) => Ok(message),
            Err(_) => {
                report.written(output.flush());
                // Waking this thread for every line would cost more than the line itself.
                thread::sleep(GATHERING_TIME);
                queue.recv()
            }
        };
    }
    report.written(output.flush());
}

/// The memory for a queued line.
fn size(line: &Vec<u8>) -> usize {
    line.capacity() + LINE_BYTES
}

/// Logs when an output begins to fail, and the number of lost lines once it works again.
struct Report<'a> {
    name: &'static str,
    lost: &'a IntCounter,
    is_failing: bool,
    /// Lost lines that have been reported.
    reported: u64,
}

impl Report<'_> {
    fn written(&mut self, result: io::Result<()>) {
        let name = self.name;
        match result {
            Ok(()) => {
                self.is_failing = false;
                let lost = self.lost.get();
                if lost > self.reported {
                    let lines = lost - self.reported;
                    tracing::warn!(lines, "lines of the {name} were lost: its output was too slow, or refused them");
                    self.reported = lost;
                }
            }
            Err(e) if !self.is_failing => {
                self.is_failing = true;
                tracing::error!("the {name} cannot be written: {e}");
            }
            Err(_) => {}
        }
    }
}

/// Standard output or error, without the standard library's buffer and lock, for which the end of the process would
/// wait.
#[derive(Debug)]
struct Descriptor(File);

impl Descriptor {
    fn of(stream: impl AsFd) -> io::Result<Self> {
        let descriptor: OwnedFd = stream.as_fd().try_clone_to_owned()?;
        Ok(Self(descriptor.into()))
    }
}

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Another process that shares the pipe or terminal may have set this.
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is reopened on request, for example after `logrotate` has moved it away.
#[derive(Debug)]
struct Reopening {
    path: PathBuf,
    file: File,
    shared: Arc<Shared>,
}

impl Reopening {
    fn open(path: &Path, shared: Arc<Shared>) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append_to(path)?, shared })
    }
}

impl Write for Reopening {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.shared.reopen.swap(false, Ordering::Relaxed) {
            match append_to(&self.path) {
                Ok(file) => self.file = file,
                // Who writes directly could not log this line at the same time.
                Err(_) if !self.shared.is_started.load(Ordering::Relaxed) => {}
                Err(e) => tracing::error!(
                    "the {} {} cannot be opened again: {e}",
                    self.shared.settings.name,
                    self.path.display()
                ),
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn settings(max_bytes: usize) -> Settings {
        Settings { name: "test log", max_bytes, lost: IntCounter::new("lost", "Lost.").expect("a name") }
    }

    fn unbounded() -> Settings {
        settings(usize::MAX)
    }

    #[test]
    fn a_moved_file_is_reopened() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let (queue, writer) = Queue::to_file(&path, unbounded()).expect("writable");
        let moved = folder.path().join("access.log.1");
        std::fs::rename(&path, &moved).expect("movable");
        queue.reopen();
        queue.push(b"line\n".to_vec());
        assert!(writer.finish(LIMIT));
        assert_eq!(std::fs::read_to_string(&moved).expect("readable"), "");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "line\n");
    }

    #[test]
    fn queued_lines_are_written_while_others_hold_the_queue() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let settings = unbounded();
        let (queue, writer) = Queue::to_file(&path, settings.clone()).expect("writable");
        for number in 0..10_000 {
            queue.push(format!("{number}\n").into_bytes());
        }
        assert!(writer.finish(LIMIT));
        let text = std::fs::read_to_string(&path).expect("readable");
        assert!(text.lines().map(str::parse).eq((0..10_000).map(Ok)), "in order and complete");
        queue.push(b"too late\n".to_vec());
        assert_eq!(settings.lost.get(), 1);
    }

    #[test]
    fn lines_are_written_directly_until_the_thread_may_start() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let (queue, writer) = Queue::to_file(&path, unbounded()).expect("writable");
        queue.write_directly();
        queue.push(b"first\n".to_vec());
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "first\n");
        assert!(!queue.shared.is_started.load(Ordering::Relaxed), "a fork would lose the thread");
        queue.use_thread();
        queue.push(b"second\n".to_vec());
        assert!(writer.finish(LIMIT));
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "first\nsecond\n");
    }

    #[test]
    fn a_writer_without_lines_ends_with_its_queue() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let open = || Queue::to_file(&folder.path().join("access.log"), unbounded()).expect("writable");
        let (queue, mut writer) = open();
        writer.release();
        assert!(!writer.has_ended(), "a request may still write its line");
        drop(queue);
        assert!(writer.has_ended());
        let (_queue, writer) = open();
        assert!(writer.finish(LIMIT));
    }

    #[test]
    fn lines_that_the_disk_refuses_are_counted() {
        let settings = unbounded();
        let (queue, writer) = Queue::to_file(Path::new("/dev/full"), settings.clone()).expect("a device");
        // Two fill the batch's buffer; with the next ones, flushing it fails.
        for _ in 0..4 {
            queue.push(vec![b'x'; BATCH_BYTES / 2]);
        }
        assert!(writer.finish(LIMIT));
        assert_eq!(settings.lost.get(), 2);
    }

    #[test]
    fn a_reader_that_does_not_read_blocks_no_writer() {
        const MAX_BYTES: usize = 1024 * 1024;
        let (mut reader, output) = io::pipe().expect("a pipe");
        let settings = settings(MAX_BYTES);
        let (queue, writer) = Queue::start(settings.clone(), |_| Descriptor::of(output)).expect("a thread");
        let line = || format!("{:>1023}\n", "x").into_bytes();
        let pushed = 2 * MAX_BYTES / line().len();
        for _ in 0..pushed {
            queue.push(line());
        }
        let lost = settings.lost.get() as usize;
        assert!(lost > 0 && lost < pushed, "{lost} of {pushed}");
        assert!(!writer.finish(Duration::from_millis(50)), "the end does not wait either");

        let mut text = Vec::new();
        reader.read_to_end(&mut text).expect("a pipe");
        assert_eq!(text.len(), (pushed - lost) * line().len(), "whatever is not lost comes when somebody reads");
    }

    #[test]
    fn a_nonblocking_output_is_waited_for() {
        let (mut reader, output) = io::pipe().expect("a pipe");
        rustix::io::ioctl_fionbio(&output, true).expect("an option of every pipe");
        let settings = unbounded();
        let (queue, writer) = Queue::start(settings.clone(), |_| Descriptor::of(output)).expect("a thread");
        let line = vec![b'x'; 1024 * 1024];
        queue.push(line.clone());
        let reading = thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text)
        });
        assert!(writer.finish(LIMIT));
        assert!(reading.join().expect("no panic").expect("a pipe") == line);
        assert_eq!(settings.lost.get(), 0);
    }
}
