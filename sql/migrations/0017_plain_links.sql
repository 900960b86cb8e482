-- The links of a page as the worker sends them, one a line (a canonical URL has no line break): to make an array of them
-- and to pack that was the half of what it took to store them.
ALTER TABLE page_link ALTER COLUMN links TYPE text USING array_to_string(links, E'\n');
