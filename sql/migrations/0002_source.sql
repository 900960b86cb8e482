-- Manifests, paged sources, and the records made of their items.

-- What a dispatch has gathered beside pages; and the manifest's dispatch that started it.
ALTER TABLE dispatch_progress ADD COLUMN items bigint NOT NULL DEFAULT 0, ADD COLUMN records bigint NOT NULL DEFAULT 0,
  ADD COLUMN unfit bigint NOT NULL DEFAULT 0;
ALTER TABLE dispatch_delta ADD COLUMN items bigint NOT NULL DEFAULT 0, ADD COLUMN records bigint NOT NULL DEFAULT 0,
  ADD COLUMN unfit bigint NOT NULL DEFAULT 0;
ALTER TABLE dispatch ADD COLUMN parent uuid;
-- Serves open-dispatches: a dispatch is done when those it started are.
CREATE INDEX dispatch_parent ON dispatch (tenant, parent) WHERE parent IS NOT NULL AND state <> 'done';

ALTER TABLE crawl_schedule ADD COLUMN page int4, ADD COLUMN total_pages int4,
  -- At-most-once jobs: committed before the call. A started row is never issued again.
  ADD COLUMN started_at timestamptz, ADD COLUMN started_by uuid;
-- Serves end-unknown: started jobs whose worker is gone.
CREATE INDEX crawl_schedule_started ON crawl_schedule (started_by) WHERE started_at IS NOT NULL;
ALTER TABLE crawl_log ADD COLUMN page int4, ADD COLUMN total_pages int4, ADD COLUMN replayed_by uuid;
-- Serves list-dead.
CREATE INDEX crawl_log_dead_letter ON crawl_log (tenant, id)
  WHERE outcome IN ('dead', 'failed', 'unknown') AND replayed_by IS NULL;

-- Items are archived only once they are processed; other streams have nothing to process.
ALTER TABLE raw_result ADD COLUMN processed boolean NOT NULL DEFAULT true;

-- Values that only a request may carry. No role that answers for a tenant reads them.
CREATE TABLE secret (
  tenant text NOT NULL REFERENCES tenant (id),
  name text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
  value text NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant, name)
);
-- Headers, cookies among them, that a dispatch sends with its requests.
CREATE TABLE dispatch_secret (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  headers jsonb NOT NULL,
  PRIMARY KEY (tenant, dispatch)
);

-- How to read an API page by page, as a document; a dispatch keeps the version it was started with.
CREATE TABLE source (
  tenant text NOT NULL REFERENCES tenant (id),
  name text NOT NULL CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,38}$'),
  version int NOT NULL DEFAULT 1,
  document jsonb NOT NULL,
  -- When its timer starts the next dispatch; none without a timer.
  next_at timestamptz,
  updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant, name)
);
-- Serves due-sources.
CREATE INDEX source_due ON source (next_at) WHERE next_at IS NOT NULL;

-- Each file once, by name and content.
CREATE TABLE manifest_log (
  tenant text NOT NULL REFERENCES tenant (id),
  name text NOT NULL,
  hash text NOT NULL,
  origin text NOT NULL CHECK (origin IN ('s3', 'api')),
  -- What the listing said of the object when it was read: the same again means that nothing changed.
  stamp text NOT NULL,
  bytes bigint NOT NULL,
  state text NOT NULL CHECK (state IN ('accepted', 'malformed', 'replaced', 'deleted')),
  entries int NOT NULL,
  reasons jsonb NOT NULL DEFAULT '[]',
  dispatch uuid,
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz,
  PRIMARY KEY (tenant, name, hash)
);
-- Serves current-manifests: what a refresh compares the prefix with.
CREATE INDEX manifest_log_current ON manifest_log (tenant, name) WHERE state IN ('accepted', 'malformed');

CREATE TABLE manifest_entry (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  entry int NOT NULL,
  service text NOT NULL,
  url text NOT NULL,
  headers jsonb NOT NULL DEFAULT '{}',
  options jsonb NOT NULL DEFAULT '{}',
  start_at timestamptz NOT NULL,
  interval_s bigint NOT NULL,
  count bigint NOT NULL,
  duration_s bigint,
  -- The last occurrence scheduled, from 0; -1 before the first.
  occurrence bigint NOT NULL DEFAULT -1,
  job uuid,
  -- Its last occurrence has begun: the next one may be scheduled.
  expand boolean NOT NULL DEFAULT true,
  state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'over', 'stopped')),
  PRIMARY KEY (tenant, dispatch, entry)
);
-- Serves open-dispatches: a manifest is done when none of its entries is to come.
CREATE INDEX manifest_entry_active ON manifest_entry (tenant, dispatch) WHERE state = 'active';
-- Serves expand-entries.
CREATE INDEX manifest_entry_expand ON manifest_entry (tenant, dispatch, entry) WHERE expand AND state = 'active';

-- One row an attempt to refresh the manifests' prefix.
CREATE TABLE manifest_refresh (
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ok boolean NOT NULL,
  files int NOT NULL DEFAULT 0,
  accepted int NOT NULL DEFAULT 0,
  error text
);
CREATE INDEX manifest_refresh_at ON manifest_refresh (at);

-- What a page dispatch knows of its API: how many items and pages there are. A changed count is a new round.
CREATE TABLE page_metadata (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  total_items bigint NOT NULL,
  total_pages int NOT NULL,
  round int NOT NULL DEFAULT 1,
  changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- The transaction that changed it last: a later statement of the same one knows itself by it.
  changed_in xid8 NOT NULL DEFAULT pg_current_xact_id(),
  PRIMARY KEY (tenant, dispatch)
);

-- A page is stored once for each (dispatch, page, total_pages).
CREATE TABLE page_scrape (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  page int NOT NULL,
  total_pages int NOT NULL,
  job uuid NOT NULL,
  items int NOT NULL,
  stored_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant, dispatch, page, total_pages)
);
-- Serves remake-results.
CREATE INDEX page_scrape_job ON page_scrape (tenant, job);

-- The answer to a call that may not be repeated, until it is archived.
CREATE TABLE kept_answer (
  tenant text NOT NULL,
  job uuid NOT NULL,
  answer bytea NOT NULL,
  PRIMARY KEY (tenant, job)
);

-- The standard shape of whatever a source calls an item; newest wins.
CREATE TABLE record (
  tenant text NOT NULL,
  source text NOT NULL,
  instance text NOT NULL,
  external_id text NOT NULL,
  author text,
  text text,
  language text,
  url text,
  rating float8,
  created_at timestamptz,
  updated_at timestamptz,
  metadata jsonb NOT NULL DEFAULT '{}',
  -- When the item was fetched, and the newer of that and its own updated_at decides which version stays.
  fetched_at timestamptz NOT NULL,
  version_at timestamptz NOT NULL,
  dispatch uuid NOT NULL,
  job uuid NOT NULL,
  PRIMARY KEY (tenant, source, instance, external_id)
);

-- Items that did not fit, with the reason; the same item is kept once.
CREATE TABLE unfit_item (
  tenant text NOT NULL,
  source text NOT NULL,
  instance text NOT NULL,
  hash uuid NOT NULL,
  item jsonb NOT NULL,
  reason text NOT NULL,
  dispatch uuid NOT NULL,
  job uuid NOT NULL,
  fetched_at timestamptz NOT NULL,
  PRIMARY KEY (tenant, source, instance, hash)
);

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['secret', 'dispatch_secret', 'source', 'manifest_log', 'manifest_entry', 'page_metadata',
                           'page_scrape', 'kept_answer', 'record', 'unfit_item'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY pipeline ON %I TO dodo_pipeline USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY tenant ON %I TO dodo_tenant USING (tenant = current_setting(''dodo.tenant'')) '
                   'WITH CHECK (tenant = current_setting(''dodo.tenant''))', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO dodo_pipeline', t);
  END LOOP;
END $$;
GRANT SELECT ON source, manifest_log, page_metadata, page_scrape, record, unfit_item TO dodo_tenant;
-- What a manifest sends is not for reading; which of its entries are to come is.
GRANT SELECT (tenant, dispatch, entry, state) ON manifest_entry TO dodo_tenant;
GRANT INSERT ON dispatch_secret TO dodo_tenant;
-- A secret is named to a tenant, never read back.
GRANT SELECT (tenant, name, updated_at) ON secret TO dodo_tenant;
GRANT INSERT, UPDATE, DELETE ON source TO dodo_tenant;
GRANT DELETE ON unfit_item TO dodo_tenant;
GRANT SELECT, INSERT, DELETE ON manifest_refresh TO dodo_pipeline;
