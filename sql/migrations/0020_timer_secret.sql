-- Headers that each dispatch of a timer sends with its requests. As with those of a dispatch, who asks for the timer does not
-- read them.
CREATE TABLE timer_secret (
  tenant text NOT NULL,
  timer uuid NOT NULL,
  headers jsonb NOT NULL,
  PRIMARY KEY (tenant, timer),
  FOREIGN KEY (tenant, timer) REFERENCES timer (tenant, id) ON DELETE CASCADE
);
ALTER TABLE timer_secret ENABLE ROW LEVEL SECURITY;
ALTER TABLE timer_secret FORCE ROW LEVEL SECURITY;
CREATE POLICY pipeline ON timer_secret TO dodo_pipeline USING (true) WITH CHECK (true);
CREATE POLICY tenant ON timer_secret TO dodo_tenant USING (tenant = current_setting('dodo.tenant'))
  WITH CHECK (tenant = current_setting('dodo.tenant'));
GRANT SELECT ON timer_secret TO dodo_pipeline;
GRANT INSERT ON timer_secret TO dodo_tenant;
