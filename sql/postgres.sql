-- The same tables in PostgreSQL, for `--data postgres`, and for tests where no CrateDB is to be had. Column for
-- column as in cratedb.sql; every statement may run again.

CREATE TABLE IF NOT EXISTS users (
    user_key TEXT COLLATE "C" PRIMARY KEY,
    id TEXT COLLATE "C" NOT NULL,
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_ms BIGINT NOT NULL
);

-- In the order in which they are listed, so that the primary key is the only index. Byte order (COLLATE "C"), as
-- in the other stores: it decides among events of one millisecond.
CREATE TABLE IF NOT EXISTS logins (
    user_key TEXT COLLATE "C" NOT NULL,
    at_ms BIGINT NOT NULL,
    id TEXT COLLATE "C" NOT NULL,
    address TEXT NOT NULL,
    instance TEXT NOT NULL,
    succeeded BOOLEAN NOT NULL,
    PRIMARY KEY (user_key, at_ms, id)
);

CREATE TABLE IF NOT EXISTS posts (
    id TEXT COLLATE "C" PRIMARY KEY,
    created_ms BIGINT NOT NULL,
    author TEXT NOT NULL,
    text TEXT NOT NULL,
    picture TEXT,
    picture_alt TEXT,
    picture_width INTEGER,
    picture_height INTEGER
);

CREATE INDEX IF NOT EXISTS posts_newest ON posts (created_ms DESC, id DESC);
