//! The phases of a request before its route's action, and the decision on the response head. The exchange translates
//! them to its own steps. All current routes use [`DirectWalk`], which costs one branch.

use std::convert::Infallible;
use std::fmt;

use super::Answer;
use super::refusal::Refusal;

/// The phases before a route's action. A walk never waits: it returns a step and is called again with the result. A
/// step that an implementation never takes has the type [`Infallible`], so that callers need not implement it.
pub(crate) trait Walk: fmt::Debug {
    /// A wait: for a time, a file, a name, a password check.
    type Wait: fmt::Debug;
    /// The result of a wait.
    type Waited;
    /// A request by the balancer on behalf of the client's request.
    type SubRequest: fmt::Debug;
    /// The next step towards the action.
    fn step(&mut self, event: WalkEvent<Self>) -> WalkStep<Self>;

    /// Decides on a response of which nothing has been sent.
    fn head(&mut self, answer: &Answer) -> HeadVerdict;
}

/// What sends a request on to another route of its site, before anything has been sent: an internal redirect, in
/// nginx's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jump {
    /// The route's action.
    Action,
    /// The error page with this index in the route's rules.
    Page(usize),
}

/// The result of the last step.
#[cfg_attr(not(test), expect(dead_code, reason = "no route waits or makes subrequests yet; tests do"))]
pub(crate) enum WalkEvent<W: Walk + ?Sized> {
    /// The walk begins, also after an answer was replaced.
    Begun,
    Waited(W::Waited),
    /// The whole body is buffered.
    BodyBuffered,
    /// The head of the answer to a subrequest.
    Sub(Answer),
    /// A subrequest that nothing waits for was started.
    Spawned,
}

#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "no route waits or makes subrequests yet; tests do"))]
pub(crate) enum WalkStep<W: Walk + ?Sized> {
    /// The walk is over: carry out the route's action.
    Act,
    Wait(W::Wait),
    /// Buffer the whole body before choosing a backend.
    BufferBody,
    Sub(W::SubRequest),
    Spawn(W::SubRequest),
    Answer(Refusal),
    /// The answer to a CORS preflight.
    Preflight,
}

#[derive(Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "no route replaces an answer yet; tests do"))]
pub(crate) enum HeadVerdict {
    Pass,
    Jump(Jump),
}

/// The walk of a route without subrequests and waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirectWalk {
    /// Whether the whole body is buffered before there is an answer.
    pub buffers_body: bool,
    pub is_preflight: bool,
}

impl Walk for DirectWalk {
    type Wait = Infallible;
    type Waited = Infallible;
    type SubRequest = Infallible;

    #[inline]
    fn step(&mut self, event: WalkEvent<Self>) -> WalkStep<Self> {
        match event {
            WalkEvent::Begun if self.is_preflight => WalkStep::Preflight,
            WalkEvent::Begun if self.buffers_body => WalkStep::BufferBody,
            WalkEvent::Waited(never) => match never {},
            WalkEvent::Begun | WalkEvent::BodyBuffered | WalkEvent::Sub(_) | WalkEvent::Spawned => WalkStep::Act,
        }
    }

    #[inline]
    fn head(&mut self, _: &Answer) -> HeadVerdict {
        HeadVerdict::Pass
    }
}
