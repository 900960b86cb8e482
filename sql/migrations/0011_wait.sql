-- What the hosts of a dispatch have waited for, milliseconds by cause: why it is as fast as it is.
CREATE TABLE dispatch_wait (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  cause text NOT NULL,
  ms bigint NOT NULL,
  PRIMARY KEY (tenant, dispatch, cause)
);
ALTER TABLE dispatch_wait ENABLE ROW LEVEL SECURITY;
ALTER TABLE dispatch_wait FORCE ROW LEVEL SECURITY;
CREATE POLICY pipeline ON dispatch_wait TO dodo_pipeline USING (true) WITH CHECK (true);
CREATE POLICY tenant ON dispatch_wait TO dodo_tenant USING (tenant = current_setting('dodo.tenant'))
  WITH CHECK (tenant = current_setting('dodo.tenant'));
GRANT SELECT, INSERT, UPDATE, DELETE ON dispatch_wait TO dodo_pipeline;
GRANT SELECT ON dispatch_wait TO dodo_tenant;
