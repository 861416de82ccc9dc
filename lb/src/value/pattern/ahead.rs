//! Removes look-ahead from an expression where that keeps its meaning, and refuses it elsewhere.
//!
//! Three kinds can be removed:
//!
//! - At a fixed offset, as in `^/(?!api|static)`: it becomes an expression of its own, a [`Guard`], which is matched at
//!   that offset.
//! - Negative, of texts, followed only by `.*` and `$`, as in `/\.(?!well-known)`: it is replaced by the complement,
//!   byte by byte (`[^w]`, `w[^e]`, …, or the end).
//! - Positive and at the end, as in `a(?=/)`: it is matched like the rest.

use std::collections::BTreeMap;

use super::pcre::{Node, Refused, Set, sequence};

/// What must match, or must not, at an offset in the subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guard {
    /// The offset in bytes.
    pub offset: u32,
    pub node: Node,
    pub is_negative: bool,
}

/// Limit on the parts of a complement.
const MAX_PIECES: usize = 1000;

/// Limit on the texts of a complement.
const MAX_TEXTS: usize = 256;

/// Limit on the length of these texts: the parts nest that deep.
const MAX_TEXT_BYTES: usize = 128;

/// Limit on the offset of a guard.
const MAX_OFFSET: u32 = 1000;

/// Removes look-ahead from `node`.
pub(super) fn resolve(node: Node) -> Result<(Node, Vec<Guard>), Refused> {
    let mut guards = Vec::new();
    let start = Context { offset: Some(Offset::Unanchored), rest: Rest::Nothing, in_group: false };
    let node = start.resolve(node, &mut guards)?;
    Ok((node, guards))
}

/// The context of a node.
#[derive(Debug, Clone, Copy)]
struct Context {
    /// Where the node begins; `None`: it varies, or the node is not part of every match.
    offset: Option<Offset>,
    rest: Rest,
    /// Whether a group captures the text of the node.
    in_group: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Offset {
    /// Nothing was matched before, and the match may begin anywhere.
    Unanchored,
    /// At this offset from the subject's start.
    At(u32),
}

/// What follows a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    Something,
}

impl Context {
    fn resolve(self, node: Node, guards: &mut Vec<Guard>) -> Result<Node, Refused> {
        let elsewhere = Context { offset: None, rest: Rest::Something, ..self };
        match node {
            Node::Sequence(nodes) => self.sequence(nodes, guards),
            ahead @ Node::Ahead { .. } => self.sequence(vec![ahead], guards),
            Node::Group(index, inner) => {
                let context = Context { in_group: true, ..self };
                Ok(Node::Group(index, Box::new(context.resolve(*inner, guards)?)))
            }
            Node::Either(nodes) => {
                let context = Context { offset: None, ..self };
                let nodes = nodes.into_iter().map(|node| context.resolve(node, guards)).collect::<Result<_, _>>()?;
                Ok(Node::Either(nodes))
            }
            Node::Repeat { of, min, max, is_greedy } => {
                Ok(Node::Repeat { of: Box::new(elsewhere.resolve(*of, guards)?), min, max, is_greedy })
            }
            node => Ok(node),
        }
    }

    fn sequence(self, nodes: Vec<Node>, guards: &mut Vec<Guard>) -> Result<Node, Refused> {
        let mut offset = self.offset;
        let mut done = Vec::new();
        let mut rest = nodes.into_iter();
        while let Some(node) = rest.next() {
            let is_last = rest.as_slice().is_empty();
            let Node::Ahead { of, is_negative, at } = node else {
                let after = if is_last { self.rest } else { Rest::Something };
                let next = offset.and_then(|offset| offset.behind(&node));
                done.push(Context { offset, rest: after, ..self }.resolve(node, guards)?);
                offset = next;
                continue;
            };
            if let Some(Offset::At(offset)) = offset {
                if !plain(&of) || (!is_negative && of.has_groups()) {
                    return refused(at, "look-ahead within look-ahead, and groups in it, are refused");
                }
                guards.push(Guard { offset, node: *of, is_negative });
            } else if self.rest == Rest::Nothing && is_last && !is_negative && plain(&of) && !self.in_group {
                done.push(*of);
            } else if self.rest == Rest::Nothing && is_negative {
                let behind = complement(&of, rest.as_slice(), self.in_group);
                done.extend(behind.map_err(|why| Refused { at, why: why.to_owned() })?);
                return Ok(sequence(done));
            } else {
                return refused(at, UNSUPPORTED);
            }
        }
        Ok(sequence(done))
    }
}

const UNSUPPORTED: &str = "this look-ahead is refused: nothing here backtracks. It can be had at a place that is always \
                           the same, as in ^/(?!api), and for texts before the end or .*, as in /\\.(?!well-known)";

fn refused<T>(at: usize, why: &str) -> Result<T, Refused> {
    Err(Refused { at, why: why.to_owned() })
}

impl Offset {
    /// Where the part after `node` begins.
    fn behind(self, node: &Node) -> Option<Self> {
        match (self, node) {
            (_, Node::Start) => Some(match self {
                Self::Unanchored => Self::At(0),
                at => at,
            }),
            (_, Node::Sequence(nodes)) => nodes.iter().try_fold(self, |offset, node| offset.behind(node)),
            (_, Node::Group(_, inner)) => self.behind(inner),
            (Self::Unanchored, node) => (length(node) == Some(0)).then_some(self),
            (Self::At(offset), node) => {
                let behind = offset.checked_add(length(node)?)?;
                (behind <= MAX_OFFSET).then_some(Self::At(behind))
            }
        }
    }
}

/// The number of bytes that `node` matches, if it is constant.
fn length(node: &Node) -> Option<u32> {
    match node {
        Node::One(_) => Some(1),
        Node::Empty | Node::Start | Node::End | Node::LineEnd | Node::WordEdge(_) | Node::Ahead { .. } => Some(0),
        // After translation it may consume a line break.
        Node::Dollar => None,
        Node::Sequence(nodes) => nodes.iter().try_fold(0u32, |sum, node| sum.checked_add(length(node)?)),
        Node::Either(nodes) => {
            let (first, others) = nodes.split_first()?;
            let first = length(first)?;
            others.iter().all(|node| length(node) == Some(first)).then_some(first)
        }
        Node::Group(_, inner) => length(inner),
        Node::Repeat { of, min, max, .. } if Some(*min) == *max => length(of)?.checked_mul(*min),
        Node::Repeat { .. } => None,
    }
}

/// Whether it contains no look-ahead.
fn plain(node: &Node) -> bool {
    match node {
        Node::Ahead { .. } => false,
        Node::Sequence(nodes) | Node::Either(nodes) => nodes.iter().all(plain),
        Node::Group(_, inner) | Node::Repeat { of: inner, .. } => plain(inner),
        _ => true,
    }
}

/// What follows the look-ahead: a run of bytes, in a group or not, and the end or not.
struct Tail {
    /// `None`: no run.
    run: Option<Run>,
    /// [`Node::End`] or [`Node::Dollar`].
    end: Option<Node>,
}

struct Run {
    of: Set,
    is_one_at_least: bool,
    group: Option<u8>,
    is_greedy: bool,
}

impl Tail {
    fn read(nodes: &[Node]) -> Option<Self> {
        let (nodes, end) = match nodes {
            [nodes @ .., end @ (Node::End | Node::Dollar)] => (nodes, Some(end.clone())),
            nodes => (nodes, None),
        };
        let run = match nodes {
            [] => None,
            [Node::Group(index, inner)] => Some(Run { group: Some(*index), ..Run::read(inner)? }),
            [node] => Some(Run::read(node)?),
            _ => return None,
        };
        Some(Self { run, end })
    }
}

impl Run {
    fn read(node: &Node) -> Option<Self> {
        match node {
            Node::Repeat { of, min: min @ (0 | 1), max: None, is_greedy } => match **of {
                Node::One(of) => Some(Self { of, is_one_at_least: *min == 1, group: None, is_greedy: *is_greedy }),
                _ => None,
            },
            _ => None,
        }
    }
}

/// One step of a text that must not follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    One(Set),
    End,
    /// The end, or a final line break.
    Dollar,
}

/// Matches `tail` where `of` does not match. The alternatives are disjoint, so that a group in `tail` captures its
/// text, and so does a group around the look-ahead.
fn complement(of: &Node, tail: &[Node], in_group: bool) -> Result<Vec<Node>, &'static str> {
    let tail = Tail::read(tail).ok_or(UNSUPPORTED)?;
    let texts = texts(of).ok_or(UNSUPPORTED)?;
    let mut builder = Builder { pieces: 0, of: Set::ALL, end: Some(Node::End), tail: Node::Empty };
    let mut is_one_at_least = false;
    let mut group = None;
    let has_end = tail.end.is_some();
    if tail.end == Some(Node::Dollar) {
        // A final line break may remain unread, and is not compared.
        let of = tail.run.as_ref().map_or(Set::default(), |run| run.of);
        let has_break = |step: &Step| matches!(step, Step::One(set) if set.has(b'\n'));
        if !of.has(b'\n') && texts.iter().flatten().any(has_break) {
            return Err(UNSUPPORTED);
        }
        builder.end = Some(Node::LineEnd);
    }
    match &tail.run {
        // Only the end of the subject can match, if anything.
        None if has_end => builder.of = Set::default(),
        // Text that is matched beyond the look-ahead would become part of the group.
        None if in_group => return Err(UNSUPPORTED),
        None => {}
        Some(run) if run.group.is_none() && !in_group && !run.is_one_at_least && !has_end => {}
        Some(run) => {
            let tests_end = texts.iter().flatten().any(|step| matches!(step, Step::End | Step::Dollar));
            let leaves = |set: &Set| *set != set.and(run.of);
            let is_broken = texts.iter().flatten().any(|step| matches!(step, Step::One(set) if leaves(set)));
            if !has_end && run.of != Set::ALL {
                // The run may end before the subject does.
                if tests_end || is_broken || run.of != Set::of([b'\n']).not() {
                    return Err(UNSUPPORTED);
                }
                builder.end = Some(Node::LineEnd);
            }
            if (run.group.is_some() || in_group) && !run.is_greedy && !has_end {
                return Err(UNSUPPORTED);
            }
            (builder.of, is_one_at_least, group) = (run.of, run.is_one_at_least, run.group);
            builder.tail = Node::Repeat { of: Box::new(Node::One(run.of)), min: 0, max: None, is_greedy: true };
        }
    }
    let all = texts.iter().map(|text| &text[..]).collect();
    let Some(node) = builder.complement(all, is_one_at_least)? else {
        // Never matches, like (?!).
        return Ok(vec![Node::One(Set::default())]);
    };
    let mut nodes = vec![match group {
        Some(index) => Node::Group(index, Box::new(node)),
        None => node,
    }];
    nodes.extend(tail.end);
    Ok(nodes)
}

/// The texts that a text with [`Step::Dollar`] at its start represents.
fn either(text: &[Step]) -> [Option<&[Step]>; 2] {
    match text {
        [Step::Dollar, ..] => [Some(&[Step::End]), Some(&[Step::One(Set::LINE_BREAK), Step::End])],
        text => [Some(text), None],
    }
}

struct Builder {
    pieces: usize,
    /// The bytes of the run.
    of: Set,
    /// How the run may end before a text is complete.
    end: Option<Node>,
    /// What may follow a byte that none of the texts has in this position.
    tail: Node,
}

impl Builder {
    /// Matches what is not a prefix of any of `texts` and does not begin with one of them. `None`: nothing does.
    fn complement(&mut self, texts: Vec<&[Step]>, is_one_at_least: bool) -> Result<Option<Node>, &'static str> {
        if texts.iter().any(|text| text.is_empty()) {
            return Ok(None);
        }
        self.pieces += 1;
        if self.pieces > MAX_PIECES {
            return Err("this look-ahead is refused: it is of too many texts");
        }
        // `$` in a text that must not follow represents two texts.
        let texts: Vec<&[Step]> = texts.into_iter().flat_map(either).flatten().collect();
        // Groups bytes by the texts that have them in this position.
        let mut kinds: BTreeMap<Vec<usize>, Set> = BTreeMap::new();
        for byte in self.of.bytes() {
            let has = |text: &&[Step]| matches!(text, [Step::One(set), ..] if set.has(byte));
            let fitting = texts.iter().enumerate().filter(|(_, text)| has(text)).map(|(index, _)| index).collect();
            kinds.entry(fitting).or_default().insert(byte);
        }
        let mut all = Vec::new();
        for (fitting, set) in kinds {
            if fitting.is_empty() {
                all.push(sequence(vec![Node::One(set), self.tail.clone()]));
                continue;
            }
            let behind = fitting.iter().filter_map(|&index| texts.get(index)?.get(1..)).collect();
            if let Some(node) = self.complement(behind, false)? {
                all.push(sequence(vec![Node::One(set), node]));
            }
        }
        let ends = texts.iter().any(|text| text.first() == Some(&Step::End));
        if !ends && !is_one_at_least {
            all.extend(self.end.clone());
        }
        Ok(match all.len() {
            0 => None,
            1 => all.pop(),
            _ => Some(Node::Either(all)),
        })
    }
}

/// The texts that `node` matches. A trailing part that may be empty is left out: nothing depends on what follows.
fn texts(node: &Node) -> Option<Vec<Vec<Step>>> {
    let mut texts = prefixes(node)?;
    // Nothing follows the end.
    for text in &mut texts {
        if let Some(end) = text.iter().position(|step| !matches!(step, Step::One(_))) {
            if text[end..].iter().any(|step| *step != text[end]) {
                return None;
            }
            text.truncate(end + 1);
        }
    }
    Some(texts)
}

/// Without trailing parts that may be empty.
fn prefixes(node: &Node) -> Option<Vec<Vec<Step>>> {
    match node {
        Node::Sequence(nodes) => {
            let kept = nodes.iter().rposition(|node| !may_be_empty(node)).map_or(0, |last| last + 1);
            let (last, before) = match nodes.get(..kept)?.split_last() {
                Some((last, before)) => (last, before),
                None => return Some(vec![Vec::new()]),
            };
            let mut all = vec![Vec::new()];
            for node in before {
                all = joined(all, whole(node)?)?;
            }
            joined(all, prefixes(last)?)
        }
        Node::Either(nodes) => {
            let all = nodes.iter().map(prefixes).collect::<Option<Vec<_>>>()?.concat();
            (all.len() <= MAX_TEXTS).then_some(all)
        }
        Node::Group(_, inner) => prefixes(inner),
        node if may_be_empty(node) => Some(vec![Vec::new()]),
        // One repetition implies the others.
        Node::Repeat { of, min, .. } => {
            let mut all = vec![Vec::new()];
            for _ in 1..*min {
                all = joined(all, whole(of)?)?;
            }
            joined(all, prefixes(of)?)
        }
        node => whole(node),
    }
}

/// Whether it matches the empty text in every position.
pub(super) fn may_be_empty(node: &Node) -> bool {
    match node {
        Node::Empty => true,
        Node::Repeat { of, min, .. } => *min == 0 || may_be_empty(of),
        Node::Sequence(nodes) => nodes.iter().all(may_be_empty),
        Node::Either(nodes) => nodes.iter().any(may_be_empty),
        Node::Group(_, inner) => may_be_empty(inner),
        _ => false,
    }
}

/// All texts that it matches, if there are not too many.
pub(super) fn whole(node: &Node) -> Option<Vec<Vec<Step>>> {
    match node {
        Node::Empty => Some(vec![Vec::new()]),
        Node::One(set) => Some(vec![vec![Step::One(*set)]]),
        Node::End => Some(vec![vec![Step::End]]),
        Node::Dollar => Some(vec![vec![Step::Dollar]]),
        Node::Sequence(nodes) => nodes.iter().try_fold(vec![Vec::new()], |all, node| joined(all, whole(node)?)),
        Node::Either(nodes) => {
            let all = nodes.iter().map(whole).collect::<Option<Vec<_>>>()?.concat();
            (all.len() <= MAX_TEXTS).then_some(all)
        }
        Node::Group(_, inner) => whole(inner),
        Node::Repeat { of, min, max: Some(max), .. } if *max <= 64 => {
            let once = whole(of)?;
            let mut all = Vec::new();
            let mut texts = vec![Vec::new()];
            for count in 0..=*max {
                if count >= *min {
                    all.extend(texts.iter().cloned());
                }
                if count < *max {
                    texts = joined(texts, once.clone())?;
                }
            }
            (all.len() <= MAX_TEXTS).then_some(all)
        }
        Node::Repeat { .. } | Node::Start | Node::LineEnd | Node::WordEdge(_) | Node::Ahead { .. } => None,
    }
}

/// Every combination of `before` and `after`.
fn joined(before: Vec<Vec<Step>>, after: Vec<Vec<Step>>) -> Option<Vec<Vec<Step>>> {
    let longest = |texts: &[Vec<Step>]| texts.iter().map(Vec::len).max().unwrap_or(0);
    if before.len() * after.len() > MAX_TEXTS || longest(&before) + longest(&after) > MAX_TEXT_BYTES {
        return None;
    }
    Some(before.iter().flat_map(|one| after.iter().map(move |other| [&one[..], &other[..]].concat())).collect())
}
