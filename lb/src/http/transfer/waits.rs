//! What the directions of a transfer wait for, and until when. Each wait has a time limit, and its kind determines
//! whose fault it is when the limit expires.

use std::time::Duration;

use super::super::io::Acknowledged;
use super::super::timer::Timer;
use super::super::upstream::Upstream;
use super::{
    BytesMoved, Download, LARGE_READ_BYTES, MAX_LARGE_READ_WAIT, RequestWriter, ResponseContent, Transfer,
    TransferEvent, Upload,
};
use crate::clock;
use crate::failure::{Detail, Failure};
use crate::message::framing::Framing;
use crate::plant::Bug;

/// What part of a wait passes before the peer is asked for what it has acknowledged so far. Shorter waits cost no
/// system call.
const FIRST_LOOK: u32 = 8;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What a direction waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// For the client, to send more of its body.
    Content,
    /// For the backend, to ask for the body that the client holds back.
    Continue,
    /// For the client, to read what it is sent.
    Client,
    /// For the client, to open a flow-control window, which it can do at any time, whatever else its connection
    /// carries.
    Window,
    /// For the backend; with the failure if that takes too long.
    Backend(Failure),
    /// For either side of a tunnel.
    Tunnel,
}

/// What the directions wait for, and how much time each has left.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waits {
    upload: Option<(Wait, Duration)>,
    download: Option<(Wait, Duration)>,
    /// When to look how much the peer has acknowledged, for a wait that takes long enough.
    look: Option<Duration>,
}

impl Transfer<'_> {
    pub(super) fn waits(&mut self) -> Waits {
        let upload = self.upload_wait();
        let download = self.download_wait(upload);
        let is_unseen = |(wait, _): &(Wait, Duration)| match wait {
            Wait::Client => self.is_client_unseen(),
            Wait::Backend(_) => self.is_backend_unseen(),
            Wait::Tunnel => self.is_client_unseen() || self.is_backend_unseen(),
            _ => false,
        };
        let look =
            [upload, download].into_iter().flatten().filter(is_unseen).map(|(_, limit)| limit / FIRST_LOOK).min();
        Waits { upload, download, look }
    }

    fn is_client_unseen(&self) -> bool {
        self.client_acknowledged.is_none() && self.client.tells_acknowledged()
    }

    /// A head without content fits into any receive buffer: only a backend that is sent more can be behind with it.
    fn is_backend_unseen(&self) -> bool {
        let takes_more =
            matches!(self.download, Download::Tunnel(_)) || self.buffers.request.framing() != Framing::None;
        self.backend_acknowledged.is_none()
            && takes_more
            && matches!(&self.upstream, Some(Upstream::H1(h1)) if h1.socket.tells_acknowledged())
    }

    /// What the upload waits for, and how much time it has left. While a response is passed on, the upload may wait as
    /// long as that takes: the backend may not want the rest, and the client need not send what it held back.
    fn upload_wait(&mut self) -> Option<(Wait, Duration)> {
        let wait = match &self.upload {
            Upload::Buffering => Wait::Content,
            Upload::Flushing(_) => Wait::Backend(Failure::WriteTimeout),
            Upload::Sending(writing) if self.owes_backend(writing) => Wait::Backend(Failure::WriteTimeout),
            Upload::Sending(_) if self.awaits_continue() => Wait::Continue,
            Upload::Sending(_) if Bug::BlamedBackend.is_planted() => Wait::Backend(Failure::ResponseTimeout),
            Upload::Sending(_) => Wait::Content,
            Upload::Sent | Upload::Abandoned(_) => return None,
        };
        // A backend may not read on before its pending writes are accepted, and here the client does not read them.
        if matches!(wait, Wait::Backend(_)) && !self.buffers.to_client.is_empty() {
            self.upload_wait = None;
            return None;
        }
        if self.upload_wait.replace(wait) != Some(wait) {
            self.upload_waited = Duration::ZERO;
        }
        let rest = |limit: Duration| limit.saturating_sub(self.upload_waited);
        let own = self.own_limits.as_deref();
        let limit = match (wait, &self.plan) {
            _ if matches!(self.download, Download::Sending(_) | Download::Flushing) => Duration::MAX,
            (Wait::Backend(_), Some(plan)) => rest(own.map_or(plan.settings.write_timeout, |own| own.write_timeout)),
            (Wait::Continue, Some(plan)) => rest(plan.settings.continue_timeout),
            _ => self.body.pace.patience(rest(self.limits.body_timeout)),
        };
        Some((wait, limit))
    }

    /// Whether the last wait of the upload was for content from the client.
    pub(super) fn is_waiting_for_content(&self) -> bool {
        self.upload_wait == Some(Wait::Content) && !self.body.is_done()
    }

    /// Whether the backend still has to accept bytes.
    fn owes_backend(&self, writing: &RequestWriter) -> bool {
        let owes_content = !writing.omits_body && !self.body.unread(writing.cursor).is_empty();
        owes_content || writing.is_unflushed || writing.written < self.buffers.to_backend.len()
    }

    /// What the download waits for, and for how long. While the client still has to send content, a silent backend is
    /// the client's fault.
    fn download_wait(&self, upload: Option<(Wait, Duration)>) -> Option<(Wait, Duration)> {
        let rest = |limit: Duration| limit.saturating_sub(self.download_waited);
        let client = || {
            let limit = self.limits.send_timeout;
            // `min_rate` applies to such a stream alone, as to a response over HTTP/1.1. Otherwise a byte now and then
            // would keep it and its memory for as long as other streams move. Of what its connection's window lets
            // through, its share counts as its own. nginx requires only a byte within `send_timeout`.
            if self.client.is_window_shut() {
                return Some((Wait::Window, self.pace.patience_alone(rest(limit))));
            }
            // A stream gets its turn when the client has read what precedes it on the connection.
            let stalled = self.client.stalled(clock::now()).unwrap_or(Duration::MAX);
            let limit = limit.saturating_sub(self.download_waited.min(stalled));
            Some((Wait::Client, self.pace.patience(limit)))
        };
        if let Download::Tunnel(tunnel) = &self.download {
            // As above: a client that takes what precedes the stream's bytes is not idle.
            let stalled = match tunnel.is_down_stuck() && !self.client.is_window_shut() {
                true => self.client.stalled(clock::now()).unwrap_or(Duration::MAX),
                false => Duration::MAX,
            };
            return Some((Wait::Tunnel, tunnel.patience().saturating_sub(self.download_waited.min(stalled))));
        }
        if !self.buffers.to_client.is_empty() {
            return client();
        }
        let settings = &self.plan.as_ref()?.settings;
        let own = self.own_limits.as_deref();
        match &self.download {
            Download::Waiting => {
                let wait = Wait::Backend(Failure::ResponseTimeout);
                match self.head_by {
                    Some(by) => Some((wait, by.saturating_duration_since(clock::now()))),
                    None => upload
                        .is_none()
                        .then(|| (wait, rest(own.map_or(settings.response_timeout, |own| own.response_timeout)))),
                }
            }
            Download::Sending(ResponseContent { pipe: Some(pipe), .. }) if !pipe.is_empty() => client(),
            Download::Sending(_) => {
                let is_client_to_blame = matches!(upload, Some((Wait::Content, _))) && !self.holds_content_back();
                let failure = if is_client_to_blame { Failure::ClientTimeout } else { Failure::ResponseStalled };
                Some((Wait::Backend(failure), rest(own.map_or(settings.read_timeout, |own| own.read_timeout))))
            }
            _ => None,
        }
    }

    /// Whether the client holds its content back until it is asked for it.
    fn awaits_continue(&self) -> bool {
        matches!(self.download, Download::Waiting) && self.holds_content_back()
    }

    /// Whether the client holds content back and has not been asked for it.
    fn holds_content_back(&self) -> bool {
        self.buffers.request.expects_continue() && self.body.is_untouched() && !self.body.has_continued
    }

    /// The limit on a backend's pause for which the client is to blame.
    #[cold]
    fn read_timeout(&self) -> Option<Detail> {
        let of_pool = self.plan.as_ref()?.settings.read_timeout;
        let limit = self.own_limits.as_ref().map_or(of_pool, |own| own.read_timeout);
        let setting = if limit == of_pool { "[[pool]] read_timeout" } else { "read_timeout of the site or route" };
        Some(Detail::Timeout { setting, limit })
    }

    /// Ends `waits` after bytes have moved.
    pub(super) fn count_moved(&mut self, waits: Option<Waits>, timer: &Timer) {
        if !self.only_drips(waits) {
            self.download_waited = Duration::ZERO;
        } else if waits.is_some() {
            self.download_waited += timer.waited();
        }
        self.count_waits(waits, timer);
    }

    /// Whether the only bytes that moved are those of a client below its minimum rate, or bytes that are dropped while
    /// the backend is waited for. These alone keep no response alive.
    fn only_drips(&self, waits: Option<Waits>) -> bool {
        let BytesMoved { from_backend, to_client, .. } = self.moved;
        from_backend + to_client == 0
            && match (&self.upload, &self.download) {
                (Upload::Abandoned(_), Download::Waiting | Download::Sending(_)) => {
                    !matches!(waits, Some(Waits { download: Some((Wait::Client | Wait::Window, _)), .. }))
                }
                (_, Download::Sending(_)) => self.body.pace.patience(Duration::MAX).is_zero(),
                _ => false,
            }
    }

    /// Counts the finished waits against the party that was waited for.
    pub(super) fn count_waits(&mut self, waits: Option<Waits>, timer: &Timer) {
        let BytesMoved { from_client, to_backend, to_client, .. } = std::mem::take(&mut self.moved);
        let waits = waits.unwrap_or_default();
        let is_of = |wait: Option<(Wait, Duration)>, of| wait.is_some_and(|(wait, _)| wait == of);
        self.pace.moved(to_client, Duration::ZERO);
        let lags = waits.download.is_some() && !self.client_lag.is_zero();
        let is_for_window = is_of(waits.download, Wait::Window);
        let is_for_client = is_for_window || is_of(waits.download, Wait::Client);
        if waits.upload.is_some() || is_for_client || lags {
            let waited = timer.waited();
            if is_of(waits.upload, Wait::Content) {
                self.body.pace.moved(0, waited);
            }
            if is_for_client {
                // Sending counts as progress of the client, too.
                self.pace.moved(from_client, waited);
                if is_for_window {
                    self.pace.waited_alone(waited);
                }
                self.client_lag += waited;
                if let (true, Download::Sending(content)) = (waited > MAX_LARGE_READ_WAIT, &mut self.download) {
                    content.read_bytes = LARGE_READ_BYTES;
                }
            } else if lags {
                self.client_lag = self.client_lag.saturating_sub(waited);
            }
            self.upload_waited += waited;
        }
        if from_client + to_backend > 0 {
            self.upload_waited = Duration::ZERO;
            self.upload_wait = None;
        }
        if to_client > 0 {
            self.client_acknowledged = None;
        }
        if to_backend > 0 {
            self.backend_acknowledged = None;
        }
    }

    /// Looks for progress that nothing tells of. The system calls a socket writable only once a third of its send
    /// buffer is free, and that may have grown to some MB: more than a peer that reads slowly and steadily takes in
    /// time, and a backend that still takes its request owes no response yet. So what the peer has acknowledged counts,
    /// compared with what it had when the wait was younger.
    fn look(&mut self) {
        let share = self.client.take_share();
        self.client_took(share);
        let waits = self.waits();
        let is_due = |is_unseen: bool, is_for: fn(Wait) -> bool| {
            waits.all().any(|(wait, limit)| is_for(wait) && (is_unseen || limit.is_zero()))
        };
        let is_client_due = is_due(self.is_client_unseen(), |wait| matches!(wait, Wait::Client | Wait::Tunnel));
        let is_backend_due = is_due(self.is_backend_unseen(), |wait| matches!(wait, Wait::Backend(_) | Wait::Tunnel));
        if is_client_due {
            let more = more_of(self.client.acknowledged(), &mut self.client_acknowledged);
            self.client_took(more);
        }
        if is_backend_due
            && let Some(Upstream::H1(h1)) = &self.upstream
            && more_of(h1.socket.acknowledged(), &mut self.backend_acknowledged) > 0
        {
            if let Some((Wait::Backend(_), _)) = waits.upload {
                self.upload_waited = Duration::ZERO;
            }
            if let Some((Wait::Backend(_) | Wait::Tunnel, _)) = waits.download {
                self.download_waited = Duration::ZERO;
            }
        }
    }

    /// The client has taken bytes that had been written before, or would have taken them if it had been this stream's
    /// turn.
    fn client_took(&mut self, bytes: u64) {
        if bytes > 0 {
            self.pace.lend(bytes);
            self.download_waited = Duration::ZERO;
        }
    }

    /// A wait has reached its limit, or it is time to [look](Self::look). Bytes that the client moved in other
    /// exchanges may extend it.
    pub(super) fn late(&mut self) -> Option<TransferEvent> {
        self.look();
        let (wait, _) = self.waits().all().find(|(_, limit)| limit.is_zero())?;
        self.has_low_rate = match wait {
            Wait::Content => self.upload_waited < self.limits.body_timeout,
            Wait::Client | Wait::Window => self.download_waited < self.limits.send_timeout,
            _ => false,
        };
        match wait {
            Wait::Content => Some(TransferEvent::Failed(Failure::ClientTimeout)),
            Wait::Client | Wait::Window => {
                self.is_stuck = true;
                Some(TransferEvent::Failed(Failure::ClientStalled))
            }
            Wait::Backend(failure) => {
                if failure == Failure::ClientTimeout {
                    self.detail = self.read_timeout();
                }
                Some(TransferEvent::Failed(failure))
            }
            Wait::Tunnel => Some(TransferEvent::Sent),
            // The backend ignores the expectation, as it may (RFC 9110 §10.1.1): ask the client in its place.
            Wait::Continue => {
                self.body.has_continued = true;
                // The client is waited for only from now on.
                if !Bug::ChargedContinue.is_planted() {
                    self.download_waited = Duration::ZERO;
                }
                self.buffers.to_client.extend_from_slice(CONTINUE);
                self.interim_bytes = self.buffers.to_client.len();
                None
            }
        }
    }
}

impl Waits {
    fn all(self) -> impl Iterator<Item = (Wait, Duration)> {
        [self.upload, self.download].into_iter().flatten()
    }

    pub(super) fn limit(self) -> Duration {
        self.all().map(|(_, limit)| limit).chain(self.look).min().unwrap_or(Duration::MAX)
    }
}

/// How many bytes a peer has acknowledged since `before`, which is moved on; 0 if that is not known.
fn more_of(acknowledged: Option<Acknowledged>, before: &mut Option<u64>) -> u64 {
    let now = acknowledged.map_or(0, |acknowledged| acknowledged.bytes);
    now.saturating_sub(before.replace(now).unwrap_or(now))
}
