-- Which file a model was, by its checksum; NULL in rows of earlier releases, which may go on to write into this table.
ALTER TABLE moe2.attempts ADD COLUMN file_sha256 text;

UPDATE moe2.version SET number = 5;
