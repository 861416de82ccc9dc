//! What a configuration needs outside of the snapshot: sockets, log files, room for clients.

use std::path::PathBuf;

use crate::config::Config;
use crate::config::advice::Subject;
use crate::config::certificate::Certificate;
use crate::config::site::ListenerName;

/// Whoever holds them. A reload gets what is new before it puts anything in force, so that it fails as a whole or not at
/// all.
pub(crate) trait Resources: Send + Sync {
    /// Gets what `wanted` needs and `running` has not. `is_trial`: it is only to be found out whether that can be done, and
    /// nobody may notice. What was got is given back when it is dropped. One call at a time, each with its commit.
    fn prepare(&self, running: &Config, wanted: &Config, is_trial: bool)
    -> Result<PreparedResources, Vec<Unavailable>>;

    /// The certificates that clients get now.
    fn certificates(&self) -> Vec<ListenerCertificate>;
}

/// A certificate of a listener, or a file that cannot be taken up as one.
#[derive(Debug)]
pub(crate) struct ListenerCertificate {
    pub listener: ListenerName,
    pub file: PathBuf,
    /// The one that clients get; `None`: none of this file.
    pub leaf: Option<Certificate>,
    /// Why what the file holds now is not taken up.
    pub problem: Option<String>,
}

/// What was got. Nothing that could fail is left to do.
pub(crate) struct PreparedResources {
    /// What is other than before and no setting tells, such as a certificate whose file has another content.
    pub changes: Vec<String>,
    /// What was asked for and cannot be had in full.
    pub warnings: Vec<String>,
    pub commit: Commit,
}

/// Takes up what was got, and gives up what is not wanted any more. It calls what it is given, which puts the
/// configuration in force, once those are shut out who may not be served by it and before anybody else is let in.
pub(crate) type Commit = Box<dyn FnOnce(&mut dyn FnMut()) + Send>;

/// Something that cannot be had, with the fix.
#[derive(Debug)]
pub(crate) struct Unavailable {
    pub subject: Subject,
    pub message: String,
}
