-- The links of a page as the worker sends them, one a line (a canonical URL has no line break): to make an array of them
-- and to pack that was the half of what it took to store them. Under another name, so that a worker of before is refused:
-- the text of its array would fit.
ALTER TABLE page_link ALTER COLUMN links TYPE text USING array_to_string(links, E'\n');
ALTER TABLE page_link RENAME COLUMN links TO lines;

-- Another type has the default's compression again.
DO $$
BEGIN
  ALTER TABLE page_link ALTER COLUMN lines SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  NULL; -- A server that was built without it.
END $$;
