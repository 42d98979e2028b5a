-- Daily limits that coordinators share: how much each has drawn of a key's budget, in microjoules or tokens. What is
-- drawn and not given back stays charged.
CREATE TABLE moe2.budgets (
    key_id text NOT NULL,
    day text NOT NULL,
    resource text NOT NULL, -- energy_uj or tokens
    drawn jsonb NOT NULL, -- by coordinator
    PRIMARY KEY (key_id, day, resource)
);

-- What all coordinators but one have drawn.
CREATE FUNCTION moe2.elsewhere(drawn jsonb, coordinator text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(sum(value::bigint), 0)::bigint FROM jsonb_each_text(drawn) WHERE key <> coordinator
$$;

-- What each coordinator has shipped of a key's day, where nothing was drawn yet: after an import, or a lost row.
CREATE FUNCTION moe2.shipped(of_key text, of_day text, of_resource text) RETURNS jsonb LANGUAGE sql STABLE AS $$
    SELECT coalesce(jsonb_object_agg(coordinator, amount), '{}') FROM (
        SELECT coordinator, CASE of_resource
                WHEN 'tokens' THEN coalesce(sum(charged_tokens), 0)::bigint
                ELSE ceil(coalesce(sum(charged_j), 0) * 1000000)::bigint
            END AS amount
        FROM moe2.requests WHERE key_id = of_key AND day = of_day GROUP BY coordinator
    ) AS sums
$$;

-- Rates of requests: a bucket for each key, which all coordinators draw from.
CREATE TABLE moe2.rates (
    key_id text PRIMARY KEY,
    per_minute double precision NOT NULL,
    available double precision NOT NULL,
    at timestamptz NOT NULL,
    granted integer NOT NULL -- at the last draw
);

-- Prices of a joule under average budgets, which all coordinators learn.
CREATE TABLE moe2.prices (
    scope text PRIMARY KEY,
    record jsonb NOT NULL
);

-- Which fleet a coordinator serves: several may share the database.
ALTER TABLE moe2.coordinators ADD COLUMN cell text NOT NULL DEFAULT 'main';

UPDATE moe2.version SET number = 3;
