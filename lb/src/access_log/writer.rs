//! Lines on their way to a file, by a thread of its own: nobody waits for a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Lines that may wait for the disk; at some 500 bytes each, 32 MB.
const MOST_WAITING: usize = 65_536;
/// Lines that have come meanwhile are written together, up to so many bytes.
const BATCH_BYTES: usize = 64 * 1024;
/// How long lines gather before they are written.
const GATHERING_TIME: Duration = Duration::from_millis(10);

/// Where lines go in.
#[derive(Debug)]
pub struct Queue {
    sender: SyncSender<Message>,
    counts: Arc<Counts>,
}

/// The thread that writes; it lives until [`finished`](Self::finish).
#[derive(Debug)]
#[must_use = "lines that still wait are lost unless the writer is finished"]
pub struct Writer {
    sender: SyncSender<Message>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    End,
}

#[derive(Debug, Default)]
struct Counts {
    lost: AtomicU64,
    reopen: AtomicBool,
}

impl Queue {
    /// Writes to standard output.
    pub fn to_stdout() -> io::Result<(Self, Writer)> {
        Self::start(|_| Ok(io::stdout()))
    }

    /// Appends to a file.
    pub fn to_file(path: &Path) -> io::Result<(Self, Writer)> {
        Self::start(|counts| Reopening::open(path, counts))
    }

    fn start<W: Write + Send + 'static>(
        output: impl FnOnce(Arc<Counts>) -> io::Result<W>,
    ) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = sync_channel(MOST_WAITING);
        let counts = Arc::new(Counts::default());
        let output = output(Arc::clone(&counts))?;
        let counts_of_thread = Arc::clone(&counts);
        let write = move || write_lines(&receiver, BufWriter::with_capacity(BATCH_BYTES, output), &counts_of_thread);
        let thread = thread::Builder::new().name("access-log".to_owned()).spawn(write)?;
        Ok((Self { sender: sender.clone(), counts }, Writer { sender, thread }))
    }

    /// Puts a line in the queue; a full one loses it.
    pub fn push(&self, line: Vec<u8>) {
        if self.sender.try_send(Message::Line(line)).is_err() {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines lost since the start: the queue was full, or the disk did not take them.
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// Opens the file again before the next line, for rotation.
    pub fn reopen(&self) {
        self.counts.reopen.store(true, Ordering::Relaxed);
    }
}

impl Writer {
    /// Waits until every line that is in the queue is written. Those that come later are lost.
    pub fn finish(self) {
        let ended = self.sender.send(Message::End).is_err();
        if self.thread.join().is_err() || ended {
            tracing::error!("the access log's writer ended early: its last lines are lost");
        }
    }
}

fn write_lines(queue: &Receiver<Message>, mut output: BufWriter<impl Write>, counts: &Counts) {
    let mut failing = false;
    let mut report = |written: io::Result<()>| match written {
        Ok(()) => failing = false,
        // Once for each time that the disk begins to refuse.
        Err(e) if !failing => {
            failing = true;
            tracing::error!("the access log cannot be written: {e}");
        }
        Err(_) => {}
    };
    let mut message = queue.recv();
    while let Ok(Message::Line(line)) = message {
        let written = output.write_all(&line);
        if written.is_err() {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            report(written);
        }
        message = match queue.try_recv() {
            Ok(message) => Ok(message),
            Err(_) => {
                report(output.flush());
                // Woken for every single line, this thread would cost more than the line.
                thread::sleep(GATHERING_TIME);
                queue.recv()
            }
        };
    }
    report(output.flush());
}

/// A file that is opened anew when asked to, as after `logrotate` moved it away.
#[derive(Debug)]
struct Reopening {
    path: PathBuf,
    file: File,
    counts: Arc<Counts>,
}

impl Reopening {
    fn open(path: &Path, counts: Arc<Counts>) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: append_to(path)?, counts })
    }
}

impl Write for Reopening {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.counts.reopen.swap(false, Ordering::Relaxed) {
            match append_to(&self.path) {
                Ok(file) => self.file = file,
                Err(e) => tracing::error!("the access log {} cannot be opened again: {e}", self.path.display()),
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
    use super::*;

    #[test]
    fn a_moved_file_is_opened_anew() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let (queue, writer) = Queue::to_file(&path).expect("writable");
        let moved = folder.path().join("access.log.1");
        std::fs::rename(&path, &moved).expect("movable");
        queue.reopen();
        queue.push(b"line\n".to_vec());
        writer.finish();
        assert_eq!(std::fs::read_to_string(&moved).expect("readable"), "");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "line\n");
    }

    #[test]
    fn what_is_queued_is_written_while_others_still_hold_the_queue() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("access.log");
        let (queue, writer) = Queue::to_file(&path).expect("writable");
        for number in 0..10_000 {
            queue.push(format!("{number}\n").into_bytes());
        }
        writer.finish();
        let text = std::fs::read_to_string(&path).expect("readable");
        assert!(text.lines().map(str::parse).eq((0..10_000).map(Ok)), "in order and complete");
        queue.push(b"too late\n".to_vec());
        assert_eq!(queue.lost(), 1);
    }

    #[test]
    fn lines_that_the_disk_refuses_are_counted() {
        let (queue, writer) = Queue::to_file(Path::new("/dev/full")).expect("a device");
        // Two fill the batch's buffer; the next find that it cannot be emptied.
        for _ in 0..4 {
            queue.push(vec![b'x'; BATCH_BYTES / 2]);
        }
        writer.finish();
        assert_eq!(queue.lost(), 2);
    }
}
