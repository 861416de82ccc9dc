//! Turns: responses go out a frame at a time, in the order in which they came to wait, their fields before content.
//!
//! Whoever has something in hand and cannot send it stands in a queue, and its task waits. Whoever is called has been woken,
//! and has not tried to send since. So if anybody waits, then the next frame is kept from it by bytes that the socket will
//! take, by a window that the client has to open, or by one that is called, whose task will run: each of them ends in
//! [`Connection::call_next`].

use std::collections::VecDeque;
use std::task::{Context, Poll};

use super::super::frame::MAX_PAYLOAD;
use super::{Connection, MAX_QUEUED_BYTES};
#[cfg(test)]
use super::{MAX_STREAMS, Output};

/// Where a stream stands that has something in hand which cannot be sent at once. One that has nothing in hand has no turn
/// and is in no queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    None,
    /// In the queue. Its task is to be woken when it is called.
    Waits(Part),
    /// Woken to send; there is room and window for a frame of it. Its task has not tried since: whatever comes of that, the
    /// turn is over.
    Called(Part),
}

/// What is to be sent, and the place of its queue in [`Connection::waiting`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Fields = 0,
    /// Takes of the window.
    Content = 1,
}

impl Connection {
    /// Whether whoever comes can send a frame without taking the turn of another.
    pub(super) fn is_free(&self, part: Part) -> bool {
        let is_first = match part {
            Part::Fields => self.waiting[0].is_empty(),
            Part::Content => self.called == [0; 2] && self.waiting.iter().all(VecDeque::is_empty),
        };
        is_first && self.has_room() && (part == Part::Fields || self.has_window())
    }

    /// Whether there is room for another frame than those of who is called.
    fn has_room(&self) -> bool {
        self.out.len() - self.out_at + self.called.iter().sum::<usize>() * MAX_PAYLOAD < MAX_QUEUED_BYTES
    }

    /// Whether the connection's window has some for another frame than those of who is called.
    fn has_window(&self) -> bool {
        self.send_window > (self.called[Part::Content as usize] * MAX_PAYLOAD) as i64
    }

    /// Ready: a frame can be sent, and the stream has no turn any more. Pending: it has its place in the queue.
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

    /// Takes a stream its turn and its place in the queue. To be followed by [`Self::call_next`].
    pub(super) fn end_turn(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let id = stream.id;
        match std::mem::replace(&mut stream.turn, Turn::None) {
            Turn::None => {}
            Turn::Waits(part) => self.waiting[part as usize].retain(|other| *other != id),
            Turn::Called(part) => self.called[part as usize] -= 1,
        }
    }

    /// Calls those whose turn it is.
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

    /// Checks what is promised above, but for the tasks: `is_awake` tells whether one of a stream is to run.
    #[cfg(test)]
    pub fn is_sound(&self, is_awake: impl Fn(u32) -> bool) {
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
