//! What a route asks for on a request's way to its action, and what it makes of the answer's head. The exchange turns
//! it into steps of its own. Routes that only proxy walk [`Direct`]ly, at the price of a branch.

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
    /// What the exchange goes on with in place of an answer: another path or another route.
    type Internal: fmt::Debug;

    /// The next step towards the action.
    fn step(&mut self, learned: Learned<Self>) -> WalkStep<Self>;

    /// What becomes of an answer, of which nothing has been sent.
    fn head(&mut self, answer: &Answer) -> HeadVerdict<Self>;
}

/// What a walk learns.
pub enum Learned<W: Walk + ?Sized> {
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
}

#[derive(Debug)]
pub enum HeadVerdict<W: Walk + ?Sized> {
    Pass,
    Replace(W::Internal),
}

/// The walk of a route that only proxies.
#[derive(Debug, Clone, Copy)]
pub struct Direct {
    /// Whether the body is read as a whole before a backend is asked.
    pub holds_body: bool,
}

impl Walk for Direct {
    type Wait = Infallible;
    type Waited = Infallible;
    type SubRequest = Infallible;
    type Internal = Infallible;

    #[inline]
    fn step(&mut self, learned: Learned<Self>) -> WalkStep<Self> {
        match learned {
            Learned::Begun if self.holds_body => WalkStep::Hold,
            Learned::Waited(never) => match never {},
            Learned::Begun | Learned::Held | Learned::Sub(_) | Learned::Spawned => WalkStep::Act,
        }
    }

    #[inline]
    fn head(&mut self, _: &Answer) -> HeadVerdict<Self> {
        HeadVerdict::Pass
    }
}
