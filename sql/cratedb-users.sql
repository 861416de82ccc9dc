-- For the hardened variant: the accounts of the application and of the metrics, each with a password and no more rights
-- than it uses. apply.py puts the passwords in place of :NAME.

CREATE USER evenkeel;

ALTER USER evenkeel SET (password = :evenkeel_password);

GRANT DQL, DML ON SCHEMA doc TO evenkeel;

-- Who may not read `sys` is told that there is no such schema. The application counts nodes and shards for its metrics, and
-- asks for a master when it is asked whether it is ready.
GRANT DQL ON TABLE sys.nodes, sys.shards, sys.cluster TO evenkeel;

CREATE USER exporter;

ALTER USER exporter SET (password = :exporter_password);

GRANT DQL ON SCHEMA sys TO exporter;
