-- Pages that are visited again: each visit is a job, and the commit that ends one schedules the next. A page's row says
-- which job is the next one, so that no other (a replay, a result made again) has it visited twice as often.
CREATE TABLE revisit (
  tenant text NOT NULL,
  url_hash uuid NOT NULL,
  dispatch uuid NOT NULL,
  -- The job of the last visit.
  last uuid NOT NULL,
  -- The job of the next one.
  next uuid NOT NULL,
  -- Serves schedule-revisits, and explain-url too.
  PRIMARY KEY (tenant, url_hash, dispatch)
) WITH (fillfactor = 80);
ALTER TABLE revisit ENABLE ROW LEVEL SECURITY;
ALTER TABLE revisit FORCE ROW LEVEL SECURITY;
CREATE POLICY pipeline ON revisit TO dodo_pipeline USING (true) WITH CHECK (true);
CREATE POLICY tenant ON revisit TO dodo_tenant USING (tenant = current_setting('dodo.tenant'))
  WITH CHECK (tenant = current_setting('dodo.tenant'));
GRANT SELECT, INSERT, UPDATE, DELETE ON revisit TO dodo_pipeline;
GRANT SELECT ON revisit TO dodo_tenant;

ALTER TABLE dispatch_progress
  ADD COLUMN revisits bigint NOT NULL DEFAULT 0,
  ADD COLUMN not_modified bigint NOT NULL DEFAULT 0,
  ADD COLUMN bytes_saved bigint NOT NULL DEFAULT 0,
  ADD COLUMN identical bigint NOT NULL DEFAULT 0,
  ADD COLUMN bytes_not_stored bigint NOT NULL DEFAULT 0;
ALTER TABLE dispatch_delta
  ADD COLUMN revisits bigint NOT NULL DEFAULT 0,
  ADD COLUMN not_modified bigint NOT NULL DEFAULT 0,
  ADD COLUMN bytes_saved bigint NOT NULL DEFAULT 0,
  ADD COLUMN identical bigint NOT NULL DEFAULT 0,
  ADD COLUMN bytes_not_stored bigint NOT NULL DEFAULT 0;
