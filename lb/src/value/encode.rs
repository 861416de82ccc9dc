//! How what a client sent is kept from breaking out of the place where it is written: a field, a request target, a
//! `Location`, a line of a log.

use super::{Facts, Presence, Value};
use crate::message::ascii::{TEXT, is, trim};

impl Value {
    /// Appends the value as that of a field. What cannot be one (RFC 9110 §5.5), such as with a line break, is missing,
    /// and so is nothing at all. Blanks around it are left out.
    pub fn write_field(&self, facts: &impl Facts, out: &mut Vec<u8>) -> Presence {
        let start = out.len();
        let presence = self.write(facts, out);
        let written = &out[start..];
        if presence == Presence::Missing || !written.iter().all(|&byte| is(byte, TEXT)) {
            out.truncate(start);
            return Presence::Missing;
        }
        let kept = trim(written).len();
        let blanks = written.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        if kept == 0 {
            out.truncate(start);
            return Presence::Missing;
        }
        out.copy_within(start + blanks..start + blanks + kept, start);
        out.truncate(start + kept);
        Presence::Present
    }
}
