-- For the hardened variant: the account that the application and the metrics use, with a password, allowed to
-- use the tables and nothing else. apply.py puts the password in place of :password.

CREATE USER evenkeel;

ALTER USER evenkeel SET (password = :password);

GRANT DQL, DML ON SCHEMA doc TO evenkeel;
