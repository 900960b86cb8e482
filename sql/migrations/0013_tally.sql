-- What each host has given a crawl that asks for it: pages, and how many of them were new. As with the progress of a
-- dispatch, commits add delta rows, which a tick of the leader sums up.
CREATE TABLE dispatch_host (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  host text NOT NULL,
  pages bigint NOT NULL,
  bytes bigint NOT NULL,
  fresh bigint NOT NULL,
  duplicates bigint NOT NULL,
  near_duplicates bigint NOT NULL,
  PRIMARY KEY (tenant, dispatch, host)
);
CREATE TABLE dispatch_host_delta (LIKE dispatch_host);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['dispatch_host', 'dispatch_host_delta'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY pipeline ON %I TO dodo_pipeline USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY tenant ON %I TO dodo_tenant USING (tenant = current_setting(''dodo.tenant'')) '
                   'WITH CHECK (tenant = current_setting(''dodo.tenant''))', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO dodo_pipeline', t);
    EXECUTE format('GRANT SELECT ON %I TO dodo_tenant', t);
  END LOOP;
END $$;
