//! Resources that a configuration needs outside of the snapshot: sockets, log files, limits.

use std::path::PathBuf;

use crate::config::Config;
use crate::config::advice::Subject;
use crate::config::certificate::Certificate;
use crate::config::site::ListenerName;

/// The owner of these resources. A reload acquires new ones before anything is put in force, so that it succeeds or
/// fails as a whole.
pub(crate) trait Resources: Send + Sync {
    /// Acquires what `wanted` needs and `running` lacks. `is_trial`: only check whether that is possible, without
    /// visible effects. Dropping the result releases the resources. One call at a time, each with its commit.
    fn prepare(&self, running: &Config, wanted: &Config, is_trial: bool)
    -> Result<PreparedResources, Vec<Unavailable>>;

    /// The certificates in use.
    fn certificates(&self) -> Vec<ListenerCertificate>;

    /// Whether clients are accepted at each address.
    fn is_accepting(&self) -> bool {
        true
    }

    /// Reopens the files of the access logs before their next lines, for rotation.
    fn reopen_logs(&self) {}
}

/// A certificate of a listener, or a file that could not be loaded as one.
#[derive(Debug)]
pub(crate) struct ListenerCertificate {
    pub listener: ListenerName,
    pub file: PathBuf,
    /// The certificate in use; `None`: none of this file.
    pub leaf: Option<Certificate>,
    /// Why the current content of the file is not in use.
    pub problem: Option<String>,
}

/// Acquired resources. Nothing is left to do that could fail.
pub(crate) struct PreparedResources {
    /// Changes that no setting shows, such as new content of a certificate file.
    pub changes: Vec<String>,
    /// Requests that could not be fulfilled completely.
    pub warnings: Vec<String>,
    pub commit: Commit,
}

/// Puts the resources in force and releases those that are no longer needed. It calls its argument, which puts the
/// configuration in force, after connections that this excludes are revoked and before new ones are admitted.
pub(crate) type Commit = Box<dyn FnOnce(&mut dyn FnMut()) + Send>;

/// A resource that is unavailable, with the fix.
#[derive(Debug)]
pub(crate) struct Unavailable {
    pub subject: Subject,
    pub message: String,
}
