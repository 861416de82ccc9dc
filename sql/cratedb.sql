-- The tables of the application in CrateDB. apply.py runs this file; every statement may run again.
--
-- Uniqueness comes from primary keys alone, so whatever must be unique is one. A partition's column must be part
-- of the primary key, and what a table is clustered by must be too, without being the partition's column.
-- Times are milliseconds since 1970, as CrateDB keeps them. Ids are made by the application.

-- Accounts. The key is the normalised name, which is what must be unique: a sign-up is one INSERT … ON CONFLICT
-- DO UPDATE that changes nothing. Reads by key see every finished write at once.
CREATE TABLE IF NOT EXISTS users (
    user_key TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL INDEX OFF,
    created_ms BIGINT NOT NULL
) CLUSTERED BY (user_key) INTO 3 SHARDS
WITH (number_of_replicas = '1', column_policy = 'strict', "write.wait_for_active_shards" = '1');

-- Attempts to log in, one partition a month: old months are dropped whole. All rows of one account lie in one
-- shard of each month, so its history is read from few places.
CREATE TABLE IF NOT EXISTS logins (
    user_key TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    id TEXT NOT NULL,
    address TEXT NOT NULL,
    instance TEXT NOT NULL,
    succeeded BOOLEAN NOT NULL,
    month TIMESTAMP WITH TIME ZONE
        GENERATED ALWAYS AS date_trunc('month', CAST(at_ms AS TIMESTAMP WITH TIME ZONE)),
    PRIMARY KEY (user_key, at_ms, id, month)
) CLUSTERED BY (user_key) INTO 3 SHARDS PARTITIONED BY (month)
WITH (number_of_replicas = '1', column_policy = 'strict', "write.wait_for_active_shards" = '1');

-- Posts of everyone, listed newest first. The text may be longer than the 32,766 bytes that an indexed string
-- can have, and nobody searches in it.
CREATE TABLE IF NOT EXISTS posts (
    id TEXT NOT NULL PRIMARY KEY,
    created_ms BIGINT NOT NULL,
    author TEXT NOT NULL,
    text TEXT NOT NULL INDEX OFF STORAGE WITH (columnstore = false),
    picture TEXT,
    picture_alt TEXT INDEX OFF STORAGE WITH (columnstore = false),
    picture_width INTEGER,
    picture_height INTEGER
) CLUSTERED BY (id) INTO 3 SHARDS
WITH (number_of_replicas = '1', column_policy = 'strict', "write.wait_for_active_shards" = '1');
