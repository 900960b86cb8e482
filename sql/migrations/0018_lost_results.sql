-- Results that were lost with Redis before they were archived, and the jobs that make them again. The range of a verified
-- segment may span the place of one: what refers to a record, or counts what comes of it, looks here. A row for each loss
-- there ever was, for as long as a later visit of a page may refer to its record.
CREATE TABLE lost_result (
  tenant text NOT NULL,
  stream text NOT NULL,
  generation bigint NOT NULL,
  ms bigint NOT NULL,
  seq bigint NOT NULL,
  remade_by uuid NOT NULL,
  -- Its items were processed and counted, or those of the result that it made again.
  counted boolean NOT NULL,
  PRIMARY KEY (tenant, stream, generation, ms, seq)
);
-- Serves process-items and remake-results.
CREATE INDEX lost_result_remade_by ON lost_result (tenant, remade_by);
ALTER TABLE lost_result ENABLE ROW LEVEL SECURITY;
ALTER TABLE lost_result FORCE ROW LEVEL SECURITY;
CREATE POLICY pipeline ON lost_result TO dodo_pipeline USING (true) WITH CHECK (true);
CREATE POLICY tenant ON lost_result TO dodo_tenant USING (tenant = current_setting('dodo.tenant'))
  WITH CHECK (tenant = current_setting('dodo.tenant'));
GRANT SELECT, INSERT ON lost_result TO dodo_pipeline;
GRANT SELECT ON lost_result TO dodo_tenant;
