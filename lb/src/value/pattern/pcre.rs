//! Parses PCRE's dialect (pcre2pattern(3), without UTF) into a tree. Constructs that need backtracking are refused with
//! a reason, and so are those that versions of PCRE interpret differently.

use std::fmt;

/// A set of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Set([u64; 4]);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Node {
    Empty,
    /// One byte.
    One(Set),
    Start,
    /// `\z`: the end.
    End,
    /// `$`: the end, or before a final line break.
    Dollar,
    /// The end, or before a line break. Never written; it results from look-ahead with `$`.
    LineEnd,
    /// `\b`, or `\B` if false.
    WordEdge(bool),
    /// At least two nodes, none of them a sequence.
    Sequence(Vec<Node>),
    /// The first alternative that matches.
    Either(Vec<Node>),
    /// Numbered from 1, in the order of opening parentheses.
    Group(u8, Box<Node>),
    Repeat {
        of: Box<Node>,
        min: u32,
        max: Option<u32>,
        is_greedy: bool,
    },
    /// Look-ahead; `at` is its position in characters.
    Ahead {
        of: Box<Node>,
        is_negative: bool,
        at: usize,
    },
}

/// A tree and its groups.
#[derive(Debug)]
pub(super) struct Parsed {
    pub node: Node,
    pub groups: u8,
    pub names: Vec<(Box<str>, u8)>,
}

/// Why an expression is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The position in characters.
    pub at: usize,
    pub why: String,
}

/// Limit on nested parentheses.
const MAX_DEPTH: usize = 50;

/// Limit on repetitions, as in PCRE.
const MAX_REPEAT: u32 = 65_535;

/// Limit on the length of a group's name in bytes, as in PCRE.
const MAX_NAME_BYTES: usize = 32;

impl Set {
    pub(super) const ALL: Self = Self([u64::MAX; 4]);
    pub(super) const LINE_BREAK: Self = Self([1 << b'\n', 0, 0, 0]);

    pub(super) fn of(bytes: impl IntoIterator<Item = u8>) -> Self {
        let mut set = Self::default();
        bytes.into_iter().for_each(|byte| set.insert(byte));
        set
    }

    pub(super) fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte / 64)] |= 1 << (byte % 64);
    }

    pub(super) fn has(self, byte: u8) -> bool {
        self.0[usize::from(byte / 64)] & 1 << (byte % 64) != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }

    pub(super) fn not(self) -> Self {
        Self(self.0.map(|word| !word))
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    pub(super) fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    /// With each letter in both cases.
    pub(super) fn folded(self) -> Self {
        let both = |byte: u8| [byte.to_ascii_lowercase(), byte.to_ascii_uppercase()];
        Self::of(self.bytes().flat_map(both))
    }

    pub(super) fn bytes(self) -> impl Iterator<Item = u8> {
        (0..=u8::MAX).filter(move |&byte| self.has(byte))
    }

    /// The byte, if it is exactly one.
    pub(super) fn single(self) -> Option<u8> {
        let mut bytes = self.bytes();
        bytes.next().filter(|_| bytes.next().is_none())
    }

    fn digits() -> Self {
        Self::of(b'0'..=b'9')
    }

    fn word() -> Self {
        Self::of((0..=u8::MAX).filter(|byte| byte.is_ascii_alphanumeric() || *byte == b'_'))
    }

    fn space() -> Self {
        Self::of([b'\t', b'\n', 0x0b, 0x0c, b'\r', b' '])
    }

    fn blank() -> Self {
        Self::of([b'\t', b' ', 0xa0])
    }

    fn line_break() -> Self {
        Self::of([b'\n', 0x0b, 0x0c, b'\r', 0x85])
    }

    /// `[:name:]`.
    fn posix(name: &str) -> Option<Self> {
        let is = |holds: fn(&u8) -> bool| Some(Self::of((0..=u8::MAX).filter(holds)));
        match name {
            "alnum" => is(u8::is_ascii_alphanumeric),
            "alpha" => is(u8::is_ascii_alphabetic),
            "ascii" => is(u8::is_ascii),
            "blank" => Some(Self::of(*b" \t")),
            "cntrl" => is(u8::is_ascii_control),
            "digit" => Some(Self::digits()),
            "graph" => is(u8::is_ascii_graphic),
            "lower" => is(u8::is_ascii_lowercase),
            "print" => is(|byte| byte.is_ascii_graphic() || *byte == b' '),
            "punct" => is(u8::is_ascii_punctuation),
            "space" => Some(Self::space()),
            "upper" => is(u8::is_ascii_uppercase),
            "word" => Some(Self::word()),
            "xdigit" => is(u8::is_ascii_hexdigit),
            _ => None,
        }
    }
}

impl Node {
    pub(super) fn has_groups(&self) -> bool {
        match self {
            Self::Group(..) => true,
            Self::Sequence(nodes) | Self::Either(nodes) => nodes.iter().any(Self::has_groups),
            Self::Repeat { of, .. } | Self::Ahead { of, .. } => of.has_groups(),
            _ => false,
        }
    }

    /// Whether it can match the empty text in some position.
    fn may_be_empty(&self) -> bool {
        match self {
            Self::One(_) => false,
            Self::Sequence(nodes) => nodes.iter().all(Self::may_be_empty),
            Self::Either(nodes) => nodes.iter().any(Self::may_be_empty),
            Self::Group(_, inner) => inner.may_be_empty(),
            Self::Repeat { of, min, .. } => *min == 0 || of.may_be_empty(),
            _ => true,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (character {})", self.why, self.at + 1)
    }
}

#[derive(Debug, Clone, Copy)]
struct Flags {
    ignores_case: bool,
    dot_is_all: bool,
    is_extended: bool,
    is_ungreedy: bool,
}

/// Parses `text`.
pub(super) fn parse(text: &str, ignores_case: bool) -> Result<Parsed, Refused> {
    let flags = Flags { ignores_case, dot_is_all: false, is_extended: false, is_ungreedy: false };
    let mut parser =
        Parser { text, at: 0, flags, depth: 0, groups: 0, names: Vec::new(), quoted: false, empty_repeat: None };
    let node = parser.alternatives()?;
    if parser.peek() == Some(')') {
        return parser.refuse("a \")\" too many; write \\) for the character");
    }
    if let Some(start) = parser.empty_repeat.filter(|_| parser.groups > 0) {
        // PCRE runs the loop once more without consuming anything, which may leave a group empty.
        let why =
            "what repeats may be empty, which makes groups doubtful; let it read something, or write (?:…) for (…)";
        return parser.refuse_at(start, why);
    }
    Ok(Parsed { node, groups: parser.groups, names: parser.names })
}

struct Parser<'a> {
    text: &'a str,
    /// Position in bytes.
    at: usize,
    flags: Flags,
    depth: usize,
    groups: u8,
    names: Vec<(Box<str>, u8)>,
    /// Between `\Q` and `\E`.
    quoted: bool,
    /// Where the first repetition begins whose body may be empty.
    empty_repeat: Option<usize>,
}

/// The meaning of an escape.
enum Escape {
    Byte(u8),
    Set(Set),
    Node(Node),
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, what: &str) -> bool {
        let is_there = self.rest().starts_with(what);
        if is_there {
            self.at += what.len();
        }
        is_there
    }

    fn refuse<T>(&self, why: impl Into<String>) -> Result<T, Refused> {
        self.refuse_at(self.at, why)
    }

    fn refuse_at<T>(&self, at: usize, why: impl Into<String>) -> Result<T, Refused> {
        Err(Refused { at: self.text[..at].chars().count(), why: why.into() })
    }

    /// Parses up to `)` or the end.
    fn alternatives(&mut self) -> Result<Node, Refused> {
        let mut all = vec![self.sequence()?];
        while !self.quoted && self.eat("|") {
            all.push(self.sequence()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Either(all) })
    }

    fn sequence(&mut self) -> Result<Node, Refused> {
        let mut nodes = Vec::new();
        loop {
            self.skip()?;
            if self.at == self.text.len() || (!self.quoted && matches!(self.peek(), Some('|' | ')'))) {
                return Ok(sequence(nodes));
            }
            let start = self.at;
            let Some(node) = self.atom()? else { continue };
            // No version of PCRE without UTF repeats a character of several bytes as a whole.
            let is_one = !matches!(node, Node::Sequence(_)) || self.text[start..].starts_with('(');
            self.skip()?;
            let at = self.at;
            let node = self.repeated(node, start)?;
            if self.at > at && !is_one {
                return self.refuse_at(start, "what repeats is its last byte only; put the character in (?:…)");
            }
            nodes.push(node);
        }
    }

    /// Skips comments and insignificant blanks; starts and ends quotation.
    fn skip(&mut self) -> Result<(), Refused> {
        loop {
            if self.quoted {
                if !self.eat("\\E") {
                    return Ok(());
                }
                self.quoted = false;
            } else if self.eat("\\Q") {
                self.quoted = true;
            } else if self.eat("\\E") {
            } else if self.rest().starts_with("(?#") {
                let Some(end) = self.rest().find(')') else {
                    return self.refuse("a comment (?#…) without \")\"");
                };
                self.at += end + 1;
            } else if self.flags.is_extended && self.peek().is_some_and(|c| c.is_ascii() && Set::space().has(c as u8)) {
                self.at += 1;
            } else if self.flags.is_extended && self.peek() == Some('#') {
                self.at += self.rest().find('\n').map_or(self.rest().len(), |end| end + 1);
            } else {
                return Ok(());
            }
        }
    }

    /// `None`: an option setting, such as `(?i)`.
    fn atom(&mut self) -> Result<Option<Node>, Refused> {
        let start = self.at;
        let Some(c) = self.next() else { return Ok(None) };
        if self.quoted {
            return Ok(Some(self.literal(c)));
        }
        Ok(Some(match c {
            '.' => Node::One(if self.flags.dot_is_all { Set::ALL } else { Set::of([b'\n']).not() }),
            '^' => Node::Start,
            '$' => Node::Dollar,
            '(' => return self.group(start),
            '[' => Node::One(self.class(start)?),
            '*' | '+' | '?' => {
                return self.refuse_at(start, format!("nothing to repeat; write \\{c} for the character"));
            }
            '{' if self.is_quantifier(start)? => {
                return self.refuse_at(start, "nothing to repeat; write \\{ for the character");
            }
            '\\' => match self.escape(start, false)? {
                Escape::Byte(byte) => Node::One(self.cased(Set::of([byte]))),
                Escape::Set(set) => Node::One(set),
                Escape::Node(node) => node,
            },
            c => self.literal(c),
        }))
    }

    fn literal(&self, c: char) -> Node {
        let bytes = c.encode_utf8(&mut [0; 4]).bytes().map(|byte| Node::One(self.cased(Set::of([byte])))).collect();
        sequence(bytes)
    }

    fn cased(&self, set: Set) -> Set {
        if self.flags.ignores_case { set.folded() } else { set }
    }

    /// Whether a quantifier in braces begins at `start`. If not, the brace is a literal.
    fn is_quantifier(&self, start: usize) -> Result<bool, Refused> {
        let Some(end) = self.text[start..].find('}') else { return Ok(false) };
        let inside = &self.text[start + 1..start + end];
        if self.quoted
            || inside.is_empty()
            || !inside.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b',' | b' ' | b'\t'))
        {
            return Ok(false);
        }
        let (min, max) = inside.split_once(',').unwrap_or((inside, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if !min.is_empty() && is_number(min) && is_number(max) {
            return Ok(true);
        }
        if !inside.bytes().any(|byte| byte.is_ascii_digit()) {
            return Ok(false);
        }
        self.refuse_at(
            start,
            format!("versions of PCRE disagree about {{{inside}}}; write {{0,n}}, or \\{{ for the character"),
        )
    }

    /// `node` with the quantifier that follows, if any.
    fn repeated(&mut self, node: Node, start: usize) -> Result<Node, Refused> {
        let at = self.at;
        let (min, max) = match self.peek() {
            _ if self.quoted => return Ok(node),
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') if self.is_quantifier(at)? => self.bounds()?,
            _ => return Ok(node),
        };
        if self.at == at {
            self.at += 1;
        }
        if matches!(node, Node::Start | Node::End | Node::Dollar | Node::WordEdge(_) | Node::Ahead { .. }) {
            return self.refuse_at(start, "what has no length cannot be repeated");
        }
        let mut is_greedy = !self.flags.is_ungreedy;
        if self.eat("?") {
            is_greedy = !is_greedy;
        } else if self.eat("+") {
            return self
                .refuse_at(at, "possessive quantifiers are refused: nothing here backtracks; leave out the last +");
        }
        if max.is_none_or(|max| max > 1) && node.may_be_empty() {
            self.empty_repeat.get_or_insert(start);
        }
        self.skip()?;
        let again = self.peek().is_some_and(|c| matches!(c, '*' | '+' | '?'))
            || self.rest().starts_with('{') && self.is_quantifier(self.at)?;
        if again && !self.quoted {
            return self.refuse("a quantifier after a quantifier; put what repeats in (?:…)");
        }
        Ok(Node::Repeat { of: Box::new(node), min, max, is_greedy })
    }

    /// Reads `{n}`, `{n,}` or `{n,m}`.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), Refused> {
        let end = self.rest().find('}').unwrap_or(self.rest().len());
        let inside = &self.rest()[1..end];
        let number = |text: &str| text.parse().ok().filter(|n| *n <= MAX_REPEAT);
        let bounds = match inside.split_once(',') {
            None => number(inside).map(|n| (n, Some(n))),
            Some((min, "")) => number(min).map(|n| (n, None)),
            Some((min, max)) => number(min).zip(number(max)).map(|(min, max)| (min, Some(max))),
        };
        match bounds.filter(|(min, max)| max.is_none_or(|max| *min <= max)) {
            Some(bounds) => {
                self.at += end + 1;
                Ok(bounds)
            }
            None => self.refuse(format!("{{{inside}}}: at most {MAX_REPEAT} times, the smaller number first")),
        }
    }

    /// Parses what begins with the opening parenthesis at `start`.
    fn group(&mut self, start: usize) -> Result<Option<Node>, Refused> {
        if self.rest().starts_with('*') {
            return self.refuse_at(
                start,
                "verbs such as (*SKIP) are refused: they steer backtracking, and nothing here backtracks",
            );
        }
        if !self.eat("?") {
            let index = self.number(start, None)?;
            return self.inside(start).map(|node| Some(Node::Group(index, Box::new(node))));
        }
        for (mark, is_negative) in [("=", false), ("!", true)] {
            if self.eat(mark) {
                let at = self.text[..start].chars().count();
                let of = Box::new(self.inside(start)?);
                return Ok(Some(Node::Ahead { of, is_negative, at }));
            }
        }
        for (mark, why) in [
            (
                "<=",
                "look-behind (?<=…) is refused: it needs backtracking; make what is before a part of the expression",
            ),
            (
                "<!",
                "look-behind (?<!…) is refused: it needs backtracking; write a class such as [^…] for what is before",
            ),
            (">", "atomic groups (?>…) are refused: they steer backtracking, and nothing here backtracks; write (?:…)"),
            ("|", "branch reset (?|…) is refused; give each alternative a group of its own"),
            ("(", "conditional groups (?(…)…) are refused: they need backtracking; write both cases with |"),
            ("R", "recursion is refused"),
            ("&", "recursion is refused"),
            ("P>", "recursion is refused"),
            ("P=", "back-references are refused: they need backtracking"),
            ("C", "callouts are refused"),
        ] {
            if self.rest().starts_with(mark) {
                return self.refuse_at(start, why);
            }
        }
        if self.rest().starts_with(|c: char| c.is_ascii_digit())
            || self.rest().starts_with(['+', '-']) && self.rest()[1..].starts_with(|c: char| c.is_ascii_digit())
        {
            return self.refuse_at(start, "recursion is refused");
        }
        for (open, close) in [("P<", '>'), ("<", '>'), ("'", '\'')] {
            if self.eat(open) {
                let Some((name, _)) = self.rest().split_once(close) else {
                    return self.refuse_at(start, "a group's name without its end; write (?<name>…)");
                };
                self.at += name.len() + 1;
                let index = self.number(start, Some(name))?;
                return self.inside(start).map(|node| Some(Node::Group(index, Box::new(node))));
            }
        }
        self.settings(start)
    }

    /// Counts a group.
    fn number(&mut self, start: usize, name: Option<&str>) -> Result<u8, Refused> {
        let Some(index) = self.groups.checked_add(1) else {
            return self.refuse_at(start, "too many groups; write (?:…) where none is read");
        };
        self.groups = index;
        if let Some(name) = name {
            let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && (1..=MAX_NAME_BYTES).contains(&name.len());
            if !is_name {
                return self.refuse_at(
                    start,
                    format!("\"{name}\" is not a valid group name: use up to {MAX_NAME_BYTES} letters, digits and _, no digit first"),
                );
            }
            if self.names.iter().any(|(known, _)| **known == *name) {
                return self.refuse_at(start, format!("two groups are named \"{name}\""));
            }
            self.names.push((name.into(), index));
        }
        Ok(index)
    }

    /// Parses the rest of a group and its `)`. Options set inside end there.
    fn inside(&mut self, start: usize) -> Result<Node, Refused> {
        if self.depth == MAX_DEPTH {
            return self.refuse_at(start, format!("parentheses are more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let flags = self.flags;
        let node = self.alternatives()?;
        self.flags = flags;
        self.depth -= 1;
        if self.quoted || !self.eat(")") {
            return self.refuse_at(start, "a \"(\" without \")\"; write \\( for the character");
        }
        Ok(node)
    }

    /// `(?i)`, `(?i:…)`, `(?:…)`.
    fn settings(&mut self, start: usize) -> Result<Option<Node>, Refused> {
        let mut flags = self.flags;
        let mut on = true;
        if self.eat("^") {
            flags = Flags { ignores_case: false, dot_is_all: false, is_extended: false, ..flags };
        }
        loop {
            match self.next() {
                Some('-') if on => on = false,
                Some('i') => flags.ignores_case = on,
                Some('s') => flags.dot_is_all = on,
                Some('x') if !self.rest().starts_with('x') => flags.is_extended = on,
                Some('U') => flags.is_ungreedy = on,
                Some(')') => {
                    self.flags = flags;
                    return Ok(None);
                }
                Some(':') => {
                    let outer = std::mem::replace(&mut self.flags, flags);
                    let node = self.inside(start)?;
                    self.flags = outer;
                    return Ok(Some(node));
                }
                Some('m') => {
                    return self.refuse_at(start, "(?m) is refused: ^ and $ stand for the whole text's start and end");
                }
                _ => {
                    return self.refuse_at(
                        start,
                        "what follows (? is unknown; write (?:…) for a group, \\( for the character",
                    );
                }
            }
        }
    }

    /// A class, after its `[` at `start`.
    fn class(&mut self, start: usize) -> Result<Set, Refused> {
        if self.posix_name().is_some() {
            return self.refuse_at(start, "a class such as [:alpha:] stands within another one, as in [[:alpha:]]");
        }
        let is_negated = self.eat("^");
        let mut set = Set::default();
        let mut is_first = true;
        loop {
            while self.eat("\\E") {}
            if !self.quoted && self.eat("\\Q") {
                self.quoted = true;
            }
            if self.quoted && self.eat("\\E") {
                self.quoted = false;
                continue;
            }
            if !self.quoted && !is_first && self.eat("]") {
                break;
            }
            is_first = false;
            let at = self.at;
            let low = match self.class_item(start)? {
                Ok(byte) => byte,
                Err(more) => {
                    set = set.or(more);
                    if self.rest().starts_with('-') && !self.rest().starts_with("-]") && !self.quoted {
                        return self.refuse_at(at, "a class cannot begin a range; write \\- for the character");
                    }
                    continue;
                }
            };
            let is_range = !self.quoted && self.rest().starts_with('-') && !self.rest().starts_with("-]");
            if !is_range {
                set.insert(low);
                continue;
            }
            self.at += 1;
            match self.class_item(start)? {
                Ok(high) if low <= high => set = set.or(Set::of(low..=high)),
                Ok(_) => return self.refuse_at(at, "a range whose end is before its start"),
                Err(_) => return self.refuse_at(at, "a class cannot end a range; write \\- for the character"),
            }
        }
        let set = self.cased(set);
        Ok(if is_negated { set.not() } else { set })
    }

    /// A byte, or a class within a class.
    fn class_item(&mut self, start: usize) -> Result<Result<u8, Set>, Refused> {
        let at = self.at;
        let Some(c) = self.next() else {
            return self.refuse_at(start, "a \"[\" without \"]\"; write \\[ for the character");
        };
        match c {
            '\\' if !self.quoted => match self.escape(at, true)? {
                Escape::Byte(byte) => Ok(Ok(byte)),
                Escape::Set(set) => Ok(Err(set)),
                Escape::Node(_) => self.refuse_at(at, "this cannot be within a class"),
            },
            '[' if !self.quoted => self.posix(at),
            c if c.is_ascii() => Ok(Ok(c as u8)),
            c => self.refuse_at(
                at,
                format!("a class is one byte, and \"{c}\" is {}; write (?:a|{c}) for [a{c}]", c.len_utf8()),
            ),
        }
    }

    /// The kind and name of something like `[:name:]`, after its `[`.
    fn posix_name(&self) -> Option<(char, &'a str)> {
        let kind = self.peek().filter(|kind| matches!(kind, ':' | '.' | '='))?;
        let end = self.rest()[1..].find(&format!("{kind}]"))?;
        let name = &self.rest()[1..=end];
        (name.contains('\\') || !name.contains(']')).then_some((kind, name))
    }

    /// `[:name:]` after its `[`; if it is malformed, the bracket is a literal.
    fn posix(&mut self, at: usize) -> Result<Result<u8, Set>, Refused> {
        let Some((kind, name)) = self.posix_name() else { return Ok(Ok(b'[')) };
        let (is_negated, plain) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
        match Set::posix(plain).filter(|_| kind == ':') {
            Some(set) => {
                self.at += name.len() + 3;
                // If case is ignored, classes of one case match both.
                let set = self.cased(set);
                Ok(Err(if is_negated { set.not() } else { set }))
            }
            None => self.refuse_at(at, format!("there is no class [{kind}{name}{kind}]")),
        }
    }

    /// Parses the escape whose `\` is at `start`.
    fn escape(&mut self, start: usize, in_class: bool) -> Result<Escape, Refused> {
        let Some(c) = self.next() else {
            return self.refuse_at(start, "a \"\\\" at the end; write \\\\ for the character");
        };
        let refused = |why: &str| self.refuse_at(start, format!("\\{c}: {why}"));
        Ok(match c {
            'd' => Escape::Set(Set::digits()),
            'D' => Escape::Set(Set::digits().not()),
            'w' => Escape::Set(Set::word()),
            'W' => Escape::Set(Set::word().not()),
            's' => Escape::Set(Set::space()),
            'S' => Escape::Set(Set::space().not()),
            'h' => Escape::Set(Set::blank()),
            'H' => Escape::Set(Set::blank().not()),
            'v' => Escape::Set(Set::line_break()),
            'V' => Escape::Set(Set::line_break().not()),
            'a' => Escape::Byte(0x07),
            'e' => Escape::Byte(0x1b),
            'f' => Escape::Byte(0x0c),
            'n' => Escape::Byte(b'\n'),
            'r' => Escape::Byte(b'\r'),
            't' => Escape::Byte(b'\t'),
            'b' if in_class => Escape::Byte(0x08),
            'b' if !in_class => Escape::Node(Node::WordEdge(true)),
            'B' if !in_class => Escape::Node(Node::WordEdge(false)),
            'A' if !in_class => Escape::Node(Node::Start),
            'z' if !in_class => Escape::Node(Node::End),
            'N' if !in_class && (!self.rest().starts_with('{') || self.is_quantifier(self.at)?) => {
                Escape::Set(Set::of([b'\n']).not())
            }
            'Z' if !in_class => Escape::Node(Node::Dollar),
            'x' => Escape::Byte(self.hexadecimal(start)?),
            '0' => {
                let digits = self.rest().bytes().take(2).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
                let value = u8::from_str_radix(&self.rest()[..digits], 8).unwrap_or(0);
                self.at += digits;
                Escape::Byte(value)
            }
            '1'..='9' if in_class => return refused("write \\x and two hexadecimal digits for a byte"),
            '1'..='9' | 'g' | 'k' => return refused("back-references are refused: they need backtracking"),
            'K' => return refused("refused; make a group of what is wanted"),
            'G' => return refused("refused; write ^ for the start"),
            'R' => return refused("refused; write (?:\\r\\n|\\n)"),
            'C' => return refused("refused; write [\\x00-\\xff] for any byte"),
            'p' | 'P' | 'X' => return refused("refused: expressions are of bytes, not of Unicode's characters"),
            'c' | 'o' => return refused("refused; write \\x and two hexadecimal digits for a byte"),
            c if c.is_ascii_alphanumeric() => return refused("has no meaning here; leave out the backslash"),
            c if c.is_ascii() => Escape::Byte(c as u8),
            c if in_class => return refused(&format!("a class is one byte, and this character is {}", c.len_utf8())),
            c => Escape::Node(self.literal(c)),
        })
    }

    /// `HH` or `{HH}` after `\x`. As in PCRE there may be one digit, or none for the byte 0.
    fn hexadecimal(&mut self, start: usize) -> Result<u8, Refused> {
        let digits = if self.rest().starts_with('{') {
            let Some(end) = self.rest().find('}') else {
                return self.refuse_at(start, "\\x{ without }; write \\x and two hexadecimal digits");
            };
            let digits = &self.rest()[1..end];
            self.at += end + 1;
            digits
        } else {
            let count = self.rest().bytes().take(2).take_while(u8::is_ascii_hexdigit).count();
            let digits = &self.rest()[..count];
            self.at += count;
            if digits.is_empty() { "0" } else { digits }
        };
        match u8::from_str_radix(digits, 16) {
            Ok(byte) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => Ok(byte),
            _ => self.refuse_at(start, format!("\\x{{{digits}}} is not a byte; write \\x and two hexadecimal digits")),
        }
    }
}

/// A sequence of the nodes.
pub(super) fn sequence(nodes: Vec<Node>) -> Node {
    let mut flat = Vec::with_capacity(nodes.len());
    for node in nodes {
        match node {
            Node::Empty => {}
            Node::Sequence(inner) => flat.extend(inner),
            node => flat.push(node),
        }
    }
    match flat.len() {
        0 => Node::Empty,
        1 => flat.remove(0),
        _ => Node::Sequence(flat),
    }
}
