-- Who may ask, who may connect, what users and operators have said: each coordinator keeps a copy in memory.
CREATE TABLE moe2.keys (
    id text PRIMARY KEY,
    made bigint GENERATED ALWAYS AS IDENTITY, -- their order
    record jsonb NOT NULL
);
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON moe2.keys
    FOR EACH STATEMENT EXECUTE FUNCTION moe2.changed('keys');

CREATE TABLE moe2.enrolment_tokens (
    name text PRIMARY KEY,
    made bigint GENERATED ALWAYS AS IDENTITY,
    record jsonb NOT NULL
);
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON moe2.enrolment_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION moe2.changed('agents');

CREATE TABLE moe2.agents (
    agent_id text PRIMARY KEY,
    made bigint GENERATED ALWAYS AS IDENTITY,
    record jsonb NOT NULL
);
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON moe2.agents
    FOR EACH STATEMENT EXECUTE FUNCTION moe2.changed('agents');

CREATE TABLE moe2.feedback (
    request_id text PRIMARY KEY,
    made bigint GENERATED ALWAYS AS IDENTITY,
    record jsonb NOT NULL
);
CREATE TRIGGER changed AFTER INSERT ON moe2.feedback
    FOR EACH STATEMENT EXECUTE FUNCTION moe2.changed('feedback');

-- One row: which hosts stay awake or asleep because an operator says so.
CREATE TABLE moe2.wishes (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    record jsonb NOT NULL
);
CREATE TRIGGER changed AFTER INSERT OR UPDATE ON moe2.wishes
    FOR EACH STATEMENT EXECUTE FUNCTION moe2.changed('wishes');

ALTER TABLE moe2.coordinators ADD COLUMN gate_sha256 text; -- of the gate's file; none: priors

UPDATE moe2.version SET number = 2;
