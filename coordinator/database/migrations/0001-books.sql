-- What requests have cost: the rows of every coordinator's own ledger, shipped by it.
CREATE SCHEMA IF NOT EXISTS moe2;

CREATE TABLE moe2.version (
    number integer NOT NULL,
    usable_by integer NOT NULL -- the oldest release that may use these tables
);
INSERT INTO moe2.version VALUES (1, 1);

CREATE TABLE moe2.coordinators (
    name text PRIMARY KEY,
    instance text NOT NULL, -- drawn anew at each start
    seen_at timestamptz NOT NULL,
    clock_offset_s double precision -- its clock against the database's
);

CREATE TABLE moe2.requests (
    coordinator text NOT NULL,
    request_id text NOT NULL,
    at_unix_s double precision NOT NULL,
    day text NOT NULL,
    key_id text,
    key_name text NOT NULL,
    mode text NOT NULL,
    category text,
    model text NOT NULL,
    outcome text NOT NULL,
    code text,
    prompt_tokens bigint,
    cached_tokens bigint,
    decoded_tokens bigint,
    ttft_s double precision,
    total_s double precision,
    joules double precision,
    quality text NOT NULL,
    charged_j double precision,
    charged_tokens bigint,
    PRIMARY KEY (coordinator, request_id)
);
CREATE INDEX requests_by_time ON moe2.requests (at_unix_s);
CREATE INDEX requests_by_day ON moe2.requests (day, key_id);

CREATE TABLE moe2.attempts (
    coordinator text NOT NULL,
    request_id text NOT NULL,
    place integer NOT NULL,
    expert text NOT NULL,
    agent text NOT NULL,
    model text NOT NULL,
    outcome text NOT NULL,
    prompt_tokens bigint,
    cached_tokens bigint,
    decoded_tokens bigint,
    seconds double precision,
    joules double precision,
    quality text NOT NULL,
    predicted_j_p50 double precision,
    predicted_j_p95 double precision,
    predicted_s_p50 double precision,
    predicted_s_p95 double precision,
    PRIMARY KEY (coordinator, request_id, place),
    FOREIGN KEY (coordinator, request_id) REFERENCES moe2.requests ON DELETE CASCADE
);

-- Joules of hosts that belong to no request, by the hour.
CREATE TABLE moe2.standing (
    agent text NOT NULL,
    hour_unix_s bigint NOT NULL,
    cause text NOT NULL,
    quality text NOT NULL,
    agent_name text NOT NULL,
    joules double precision NOT NULL,
    PRIMARY KEY (agent, hour_unix_s, cause, quality)
);

-- How far each agent's counters are in these sums. Every coordinator that is connected to an agent ships its counters,
-- and only what is above the highest seen counts, so that joules are counted once.
CREATE TABLE moe2.standing_counters (
    agent text NOT NULL,
    epoch text NOT NULL,
    idle_j double precision NOT NULL,
    loading_j double precision NOT NULL,
    waking_j double precision NOT NULL,
    other_j double precision NOT NULL,
    requests_j double precision NOT NULL,
    PRIMARY KEY (agent, epoch)
);

-- What coordinators keep copies of, and how often each has changed. A change notifies all of them.
CREATE TABLE moe2.revisions (
    subject text PRIMARY KEY,
    n bigint NOT NULL
);
CREATE FUNCTION moe2.changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO moe2.revisions VALUES (TG_ARGV[0], 1)
    ON CONFLICT (subject) DO UPDATE SET n = moe2.revisions.n + 1;
    PERFORM pg_notify('moe2', TG_ARGV[0]);
    RETURN NULL;
END $$;
