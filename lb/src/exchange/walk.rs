//! What a route asks for on a request's way to its action, and what it makes of the answer's head. The exchange turns
//! it into steps of its own. Those of today walk [`DirectWalk`]ly, at the price of a branch.

use std::convert::Infallible;
use std::fmt;

use super::Answer;
use super::refusal::Refusal;

/// A walk never waits: it returns what it needs, and is told how that went. What a walk cannot ask for has the type
/// [`Infallible`], so that whoever carries out its steps need not know how.
pub trait Walk: fmt::Debug {
    /// A wait: for a moment, a file, a name, a password to be checked.
    type Wait: fmt::Debug;
    /// How a wait ended.
    type Waited;
    /// A request of our own, on behalf of the client's.
    type SubRequest: fmt::Debug;
    /// The next step towards the action.
    fn step(&mut self, event: WalkEvent<Self>) -> WalkStep<Self>;

    /// What becomes of an answer, of which nothing has been sent.
    fn head(&mut self, answer: &Answer) -> HeadVerdict;
}

/// What an exchange goes on with in place of an answer, by who says where that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InternalRedirect {
    /// The route's action.
    Action,
    /// The error page at this place among those of the route.
    Page(usize),
}

/// What a walk learns.
pub enum WalkEvent<W: Walk + ?Sized> {
    /// It begins, also after an answer was replaced.
    Begun,
    Waited(W::Waited),
    /// The body is there as a whole.
    Held,
    /// The head of the answer to a sub-request.
    Sub(Answer),
    /// A sub-request that nobody waits for is under way.
    Spawned,
}

#[derive(Debug)]
pub enum WalkStep<W: Walk + ?Sized> {
    /// The way is over: a backend is asked.
    Act,
    Wait(W::Wait),
    /// Read the body before anybody is asked.
    Hold,
    Sub(W::SubRequest),
    Spawn(W::SubRequest),
    Answer(Refusal),
    /// The answer to a preflight of CORS.
    Preflight,
}

#[derive(Debug)]
pub enum HeadVerdict {
    Pass,
    Replace(InternalRedirect),
}

/// The walk of a route that asks nobody on the way.
#[derive(Debug, Clone, Copy)]
pub struct DirectWalk {
    /// Whether the body is read as a whole before there is an answer.
    pub holds_body: bool,
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
            WalkEvent::Begun if self.holds_body => WalkStep::Hold,
            WalkEvent::Waited(never) => match never {},
            WalkEvent::Begun | WalkEvent::Held | WalkEvent::Sub(_) | WalkEvent::Spawned => WalkStep::Act,
        }
    }

    #[inline]
    fn head(&mut self, _: &Answer) -> HeadVerdict {
        HeadVerdict::Pass
    }
}
