-- How far each coordinator's books are in these tables: what it had recorded by then has been shipped.
ALTER TABLE moe2.coordinators ADD COLUMN shipped_at timestamptz;

-- As SQLite has it, so that one statement sums up both a coordinator's own ledger and these tables.
CREATE FUNCTION moe2.joined(former text, next text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN former IS NULL THEN next WHEN next IS NULL THEN former ELSE former || ',' || next END
$$;
CREATE AGGREGATE moe2.group_concat(text) (SFUNC = moe2.joined, STYPE = text);

UPDATE moe2.version SET number = 4;
