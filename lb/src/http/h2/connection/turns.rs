//! The order in which streams send: a frame each, oldest first, fields before content.
//!
//! A stream that has something to send and may not is put in a queue, and its task sleeps. When there is room in `out`,
//! and window, for another frame, [`Connection::call_next`] takes the first out of the queue and wakes it: it is
//! *called*, and that room is kept for it until its task tries to send. No stream waits for ever: what it waits for is
//! the socket, which will take bytes; the client, which has to open the connection's window; or a stream that is
//! called, whose task will run. Each of these ends in `call_next`.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use super::super::frame::MAX_PAYLOAD;
use super::{Connection, MAX_QUEUED_BYTES, SHARE_UNITS};
#[cfg(test)]
use super::{MAX_STREAMS, Output};

/// How far a stream has come in the queue. One that has nothing to send is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    None,
    /// In the queue.
    Waits(Part),
    /// Out of the queue and woken. Room and window for one frame are kept for it until its task has tried to send,
    /// whether it does or not.
    Called(Part),
}

/// What a stream has to send: the index of its queue in [`Connection::waiting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Fields = 0,
    /// Needs window, too.
    Content = 1,
}

impl Connection {
    /// Whether a stream that is not in the queue may send a frame at once: no other waits for that.
    pub(super) fn is_free(&self, part: Part) -> bool {
        let is_first = match part {
            Part::Fields => self.waiting[0].is_empty(),
            Part::Content => self.called == [0; 2] && self.waiting.iter().all(VecDeque::is_empty),
        };
        is_first && self.has_room() && (part == Part::Fields || self.has_window())
    }

    /// Whether there is room for a frame besides those of the streams that are called.
    fn has_room(&self) -> bool {
        self.out.len() - self.out_at + self.called.iter().sum::<usize>() * MAX_PAYLOAD < MAX_QUEUED_BYTES
    }

    /// Whether the connection's window allows a frame besides those of the streams that are called.
    pub(super) fn has_window(&self) -> bool {
        self.send_window > (self.called[Part::Content as usize] * MAX_PAYLOAD) as i64
    }

    /// Ready: the stream may send a frame now. Pending: it is in the queue.
    pub(super) fn poll_turn(&mut self, at: usize, part: Part, cx: &Context<'_>) -> Poll<()> {
        let turn = self.streams[at].turn;
        if turn == Turn::Called(part) || turn != Turn::Waits(part) && self.is_free(part) {
            self.end_turn(at);
            return Poll::Ready(());
        }
        let waits = self.streams[at].wait(cx);
        if turn != Turn::Waits(part) {
            self.end_turn(at);
            let stream = &mut self.streams[at];
            stream.turn = Turn::Waits(part);
            self.waiting[part as usize].push_back(stream.id);
            self.call_next();
        }
        waits
    }

    /// Takes a stream out of the queue, or its turn away. To be followed by [`Self::call_next`].
    pub(super) fn end_turn(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let id = stream.id;
        match std::mem::replace(&mut stream.turn, Turn::None) {
            Turn::None => {}
            Turn::Waits(part) => self.waiting[part as usize].retain(|other| *other != id),
            Turn::Called(part) => self.called[part as usize] -= 1,
        }
    }

    /// Calls streams from the queues while there is room.
    pub(super) fn call_next(&mut self) {
        while self.has_room() {
            let part = match &self.waiting {
                [fields, _] if !fields.is_empty() => Part::Fields,
                [_, content] if !content.is_empty() && self.has_window() => Part::Content,
                _ => return,
            };
            if let Some(id) = self.waiting[part as usize].pop_front()
                && let Some(at) = self.find(id)
            {
                self.streams[at].turn = Turn::Called(part);
                self.streams[at].wake();
                self.called[part as usize] += 1;
            }
        }
    }

    /// Counts `len` bytes of content that a stream sends as shared by all that wait for their turn.
    pub(super) fn share_out(&mut self, len: usize) {
        let content = Part::Content as usize;
        let others = self.waiting[content].len() + self.called[content];
        if others > 0 {
            self.share = self.share.wrapping_add(len as u64 * SHARE_UNITS / (others as u64 + 1));
        }
    }

    /// Asserts what this module promises. `is_awake`: whether the task of a stream is scheduled to run.
    #[cfg(test)]
    pub fn assert_sound(&self, is_awake: impl Fn(u32) -> bool) {
        for (queue, part) in self.waiting.iter().zip([Part::Fields, Part::Content]) {
            for id in queue {
                let stream = self.find(*id).map(|at| &self.streams[at]).expect("a stream");
                assert!(stream.turn == Turn::Waits(part), "{stream:?}");
                assert!(stream.reset.is_none() && stream.output != Output::Ended, "{stream:?}");
                assert!(stream.waker.is_some() || is_awake(*id), "nothing wakes it");
            }
            let is_asleep = self.streams.iter().any(|one| one.turn == Turn::Called(part) && !is_awake(one.id));
            assert!(!is_asleep, "called, and not woken");
            let count = |turn| self.streams.iter().filter(|stream| stream.turn == turn).count();
            assert_eq!(count(Turn::Waits(part)), queue.len());
            assert_eq!(count(Turn::Called(part)), self.called[part as usize]);
        }
        let [fields, content] = &self.waiting;
        assert!(
            !self.has_room() || fields.is_empty() && (content.is_empty() || !self.has_window()),
            "nobody is called"
        );
        assert!(self.tasks <= MAX_STREAMS && self.streams.len() <= 2 * MAX_STREAMS);
    }
}
