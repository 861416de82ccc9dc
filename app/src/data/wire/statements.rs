//! Every statement that is sent to CrateDB or PostgreSQL, in one place, so that a test can prove all of them against
//! CrateDB's grammar. PostgreSQL has writes of its own, and is not sent those at the end.

// A write whose row is there already writes that row once more, as it is. CrateDB answers `DO NOTHING` at once, while
// the row may still be on its way from the primary to a replica, which whoever looks for it next may ask. A write it
// answers when all copies have it, and what came before it.

/// Returns the id of the owner of the name.
pub const CREATE_USER: &str = "\
    INSERT INTO users (user_key, id, name, password_hash, created_ms) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (user_key) DO UPDATE SET created_ms = created_ms RETURNING id";

pub const USER: &str = "SELECT id, name, password_hash, created_ms FROM users WHERE user_key = $1";

pub const RECORD_LOGIN: &str = "\
    INSERT INTO logins (user_key, at_ms, id, address, instance, succeeded) \
    VALUES ($1, $2, $3, $4, $5, $6) \
    ON CONFLICT (user_key, at_ms, id, month) DO UPDATE SET instance = instance";

pub const LOGINS: &str = "\
    SELECT user_key, at_ms, id, address, instance, succeeded FROM logins \
    WHERE user_key = $1 AND (at_ms < $2 OR (at_ms = $2 AND id < $3)) \
    ORDER BY at_ms DESC, id DESC LIMIT $4";

/// By primary key: CrateDB works out the month by itself.
pub const LOGIN_BY_KEY: &str = "\
    SELECT user_key, at_ms, id, address, instance, succeeded FROM logins \
    WHERE user_key = $1 AND at_ms = $2 AND id = $3";

pub const ADD_POST: &str = "\
    INSERT INTO posts (id, created_ms, author, text, picture, picture_alt, picture_width, picture_height) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (id) DO UPDATE SET author = author";

pub const POSTS: &str = "\
    SELECT id, created_ms, author, text, picture, picture_alt, picture_width, picture_height FROM posts \
    WHERE created_ms < $1 OR (created_ms = $1 AND id < $2) \
    ORDER BY created_ms DESC, id DESC LIMIT $3";

/// One row by primary key. With `id = ANY($1)` for several rows, CrateDB would see only refreshed rows: it reads by key
/// only if each key is a separate value.
pub const POST_BY_KEY: &str = "\
    SELECT id, created_ms, author, text, picture, picture_alt, picture_width, picture_height FROM posts WHERE id = $1";

/// By primary key, as in a login: cheap, and it fails if the table is missing or has lost its data.
pub const READY: &str = "SELECT id FROM users WHERE user_key = ''";

/// For each connection to CrateDB. By default a list is read in two phases, of which the second, `fetchPhase`, holds a
/// lock on its shards. A node that hangs between the two and is taken out of the cluster keeps that lock when it comes
/// back, and none of these shards can start on it ("failed to obtain shard lock") until `KILL ALL`.
pub const SESSION: &str = "SET SESSION optimizer_rewrite_to_query_then_fetch = false";

pub const TABLES: &str = "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema";

/// Null without one.
pub const MASTER: &str = "SELECT master_node FROM sys.cluster";
pub const NODES: &str = "SELECT count(*) FROM sys.nodes";
pub const SHARDS: &str = "SELECT count(*) FROM sys.shards";
pub const UNASSIGNED_SHARDS: &str = "SELECT count(*) FROM sys.shards WHERE state = 'UNASSIGNED'";

/// Everything that is sent to CrateDB, besides the statements of its DDL file.
pub const ALL: [&str; 15] = [
    CREATE_USER,
    USER,
    RECORD_LOGIN,
    LOGINS,
    LOGIN_BY_KEY,
    ADD_POST,
    POSTS,
    POST_BY_KEY,
    READY,
    SESSION,
    TABLES,
    MASTER,
    NODES,
    SHARDS,
    UNASSIGNED_SHARDS,
];

pub const OUR_TABLES: [&str; 3] = ["users", "logins", "posts"];

/// The statements of a DDL file, in which each ends with a semicolon at the end of a line.
pub fn of_file(text: &str) -> impl Iterator<Item = &str> {
    text.split(";\n").map(|statement| statement.trim().trim_end_matches(';')).filter(|statement| {
        statement.lines().any(|line| !line.trim().is_empty() && !line.trim_start().starts_with("--"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_split_into_its_statements() {
        let text = "-- About; this\nCREATE TABLE a (\n  b TEXT -- why\n);\n\nCREATE TABLE c (d TEXT);\n-- the end\n";
        let statements: Vec<_> = of_file(text).collect();
        assert_eq!(statements.len(), 2, "{statements:?}");
        assert!(statements[0].ends_with(')') && statements[1].starts_with("CREATE TABLE c"), "{statements:?}");
    }

    #[test]
    fn the_list_holds_every_statement_of_this_file() {
        let constants = include_str!("statements.rs").lines().filter(|line| line.starts_with("pub const "));
        assert_eq!(constants.filter(|line| line.contains(": &str")).count(), ALL.len());
    }
}
