//! Settings of the stores that are reached over the network.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::{DatabaseArgs, RedisArgs, Secret};
use crate::config::check_range;
use crate::data::wire;
use crate::media::Bucket;
use crate::sessions::redis_cluster::{self, Tls};

/// No request should wait longer for a store.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

impl RedisArgs {
    pub(super) fn settings(&self, visitor_lifetime: Duration) -> anyhow::Result<redis_cluster::Settings> {
        ensure!(
            !self.redis_nodes.is_empty(),
            "--sessions redis-cluster needs --redis-nodes: name the cluster's nodes, such as redis-1:6379,redis-2:6379"
        );
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b":._-/".contains(&byte);
        ensure!(
            self.redis_prefix.len() <= 64 && self.redis_prefix.bytes().all(fit),
            // A brace would put all sessions into one slot, that is on one node.
            "--redis-prefix {:?} does not fit: take up to 64 letters, digits and any of : . _ - /, such as session:",
            self.redis_prefix,
        );
        for (flag, time) in [
            ("--redis-connect-timeout", self.redis_connect_timeout),
            ("--redis-response-timeout", self.redis_response_timeout),
            ("--redis-retry-wait", self.redis_retry_wait),
            ("--redis-rebuild-timeout", self.redis_rebuild_timeout),
            ("--redis-attempt-timeout", self.redis_attempt_timeout),
            ("--redis-timeout", self.redis_timeout),
        ] {
            check_range(flag, time, MAX_TIMEOUT)?;
        }
        ensure!(
            self.redis_response_timeout <= self.redis_attempt_timeout
                && self.redis_attempt_timeout <= self.redis_timeout,
            "--redis-response-timeout, --redis-attempt-timeout and --redis-timeout contain each other: each is at least \
             as long as the one before, such as 500ms, 1500ms and 8s"
        );
        let tls = self.redis_tls || self.redis_ca_file.is_some();
        Ok(redis_cluster::Settings {
            nodes: self.redis_nodes.clone(),
            username: self.redis_username.clone(),
            password: secret("--redis-password-file", self.redis_password_file.as_deref())?,
            tls: if tls { Some(Tls { ca: read("--redis-ca-file", self.redis_ca_file.as_deref())? }) } else { None },
            prefix: self.redis_prefix.clone(),
            connect_timeout: self.redis_connect_timeout,
            response_timeout: self.redis_response_timeout,
            retry_wait: self.redis_retry_wait,
            rebuild_timeout: self.redis_rebuild_timeout,
            attempt_timeout: self.redis_attempt_timeout,
            overall_timeout: self.redis_timeout,
            visitor_lifetime,
        })
    }
}

impl DatabaseArgs {
    pub(super) fn settings(&self, kind: &str) -> anyhow::Result<wire::Settings> {
        let url = self.database_url.as_deref().with_context(|| {
            format!("--data {kind} needs --database-url, such as postgresql://crate@cratedb-1:5432,cratedb-2:5432/doc")
        })?;
        for (flag, time, longest) in [
            ("--database-connect-timeout", self.database_connect_timeout, MAX_TIMEOUT),
            ("--database-statement-timeout", self.database_statement_timeout, MAX_TIMEOUT),
            ("--database-timeout", self.database_timeout, MAX_TIMEOUT),
            ("--database-start-deadline", self.database_start_deadline, Duration::from_secs(24 * 3600)),
        ] {
            check_range(flag, time, longest)?;
        }
        ensure!(
            self.database_statement_timeout <= self.database_timeout,
            "--database-statement-timeout is longer than --database-timeout, which contains it: take 2s and 8s"
        );
        ensure!(
            (1..=1_000).contains(&self.database_connections),
            "--database-connections {} is out of range: take 1 to 1000",
            self.database_connections
        );
        let nodes = wire::Nodes::parse(
            url,
            secret("--database-password-file", self.database_password_file.as_deref())?.as_ref(),
            read("--database-ca-file", self.database_ca_file.as_deref())?.as_deref(),
        );
        Ok(wire::Settings {
            nodes: nodes.context("--database-url cannot be used")?,
            connections: self.database_connections,
            connect_timeout: self.database_connect_timeout,
            statement_timeout: self.database_statement_timeout,
            overall_timeout: self.database_timeout,
            start_deadline: self.database_start_deadline,
        })
    }
}

/// The content of a file that a flag names.
fn read(flag: &str, file: Option<&Path>) -> anyhow::Result<Option<Vec<u8>>> {
    let read = |file: &Path| std::fs::read(file).with_context(|| format!("{flag} {}: cannot read it", file.display()));
    file.map(read).transpose()
}

fn secret(flag: &str, file: Option<&Path>) -> anyhow::Result<Option<Secret>> {
    let (Some(content), Some(file)) = (read(flag, file)?, file) else { return Ok(None) };
    let text = String::from_utf8(content).ok().with_context(|| format!("{flag} {}: not text", file.display()))?;
    // Editors end files with a line break, which is not part of the password.
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "{flag} {}: the file is empty, put the password into it", file.display());
    Ok(Some(Secret(text.to_owned())))
}

pub(super) fn bucket(url: &str) -> anyhow::Result<Bucket> {
    url.parse().with_context(|| format!("--media {url:?} cannot be used"))
}
