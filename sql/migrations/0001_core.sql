-- The core: tenants, the schedule and its log, hosts, the seen-set, raw results and their archive,
-- worker incarnations, the generation of Redis and the leader's lease.
--
-- Two roles do the work. dodo_pipeline batches jobs of many tenants and has a policy of its own;
-- dodo_tenant acts for one tenant, named by the setting dodo.tenant of its transaction. Row level
-- security is forced, so not even the owner of the tables reads past it.

CREATE EXTENSION IF NOT EXISTS btree_gist;

DO $$
BEGIN
  -- Roles belong to the whole server: another database may have made them already, or be making
  -- them right now.
  BEGIN CREATE ROLE dodo_pipeline NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END;
  BEGIN CREATE ROLE dodo_tenant NOLOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END;
  EXECUTE format('GRANT dodo_pipeline, dodo_tenant TO %I', current_user);
END $$;

CREATE TABLE tenant (
  id text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
  created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO tenant (id) VALUES ('default');

-- One row per batch of jobs: a crawl, a burst of no-op jobs.
CREATE TABLE dispatch (
  tenant text NOT NULL REFERENCES tenant (id),
  id uuid NOT NULL,
  kind text NOT NULL,
  key text,
  spec jsonb NOT NULL,
  state text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'archiving', 'done')),
  created_at timestamptz NOT NULL DEFAULT now(),
  finished_at timestamptz,
  PRIMARY KEY (tenant, id),
  CONSTRAINT dispatch_key UNIQUE (tenant, key)
);
-- Serves open-dispatches.
CREATE INDEX dispatch_open ON dispatch (tenant, id) WHERE state <> 'done';

-- Progress is written as delta rows, so that no commit waits for another's counter; a tick of the
-- leader rolls them up into dispatch_progress. The true figure is the sum of both.
CREATE TABLE dispatch_progress (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  scheduled bigint NOT NULL DEFAULT 0,
  finished bigint NOT NULL DEFAULT 0,
  pages bigint NOT NULL DEFAULT 0,
  failed bigint NOT NULL DEFAULT 0,
  skipped bigint NOT NULL DEFAULT 0,
  links bigint NOT NULL DEFAULT 0,
  duplicates bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0,
  raw bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (tenant, dispatch)
);
CREATE TABLE dispatch_delta (
  LIKE dispatch_progress INCLUDING DEFAULTS
);
ALTER TABLE dispatch_delta ADD COLUMN at timestamptz NOT NULL DEFAULT now();

-- Pending jobs. A job is a row here until one transaction deletes it and writes its crawl_log row.
CREATE TABLE crawl_schedule (
  tenant text NOT NULL,
  id uuid NOT NULL,
  dispatch uuid NOT NULL,
  kind text NOT NULL,
  host text NOT NULL DEFAULT '',
  priority int2 NOT NULL DEFAULT 0,
  run_at timestamptz NOT NULL DEFAULT now(),
  attempt int2 NOT NULL DEFAULT 0,
  depth int2 NOT NULL DEFAULT 0,
  hops int2 NOT NULL DEFAULT 0,
  url text,
  url_hash uuid,
  found_on uuid,
  payload jsonb,
  dedupe_key text,
  remake_of uuid,
  last_error text,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (tenant, id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_analyze_scale_factor = 0.1, autovacuum_vacuum_cost_delay = 0);
-- Serves refill-hosts and scan-hosts: the due jobs of a host in their order, the hosts in theirs.
CREATE INDEX crawl_schedule_frontier ON crawl_schedule (tenant, host, priority, run_at, id);
-- Serves submit-jobs: a job with a key is scheduled once.
CREATE UNIQUE INDEX crawl_schedule_dedupe ON crawl_schedule (tenant, dedupe_key) WHERE dedupe_key IS NOT NULL;

-- Finished jobs with every figure that explains them.
CREATE TABLE crawl_log (
  tenant text NOT NULL,
  id uuid NOT NULL,
  finished_at timestamptz NOT NULL DEFAULT now(),
  dispatch uuid NOT NULL,
  kind text NOT NULL,
  host text NOT NULL,
  priority int2 NOT NULL,
  attempt int2 NOT NULL,
  depth int2 NOT NULL,
  hops int2 NOT NULL,
  url text,
  url_hash uuid,
  found_on uuid,
  payload jsonb,
  remake_of uuid,
  created_at timestamptz NOT NULL,
  outcome text NOT NULL,
  reason text,
  status int2,
  content_type text,
  body_bytes bigint,
  truncated text,
  digest text,
  title text,
  language text,
  location text,
  address text,
  link_count int,
  new_count int,
  started_at timestamptz,
  fetch_ms int,
  worker uuid,
  raw_stream text,
  raw_generation bigint,
  raw_ms bigint,
  raw_seq bigint,
  PRIMARY KEY (tenant, id, finished_at)
) PARTITION BY RANGE (finished_at);
CREATE TABLE crawl_log_default PARTITION OF crawl_log DEFAULT;

-- The seen-set of a dispatch, exact: a URL belongs to the job that was scheduled for it.
CREATE TABLE url (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  hash uuid NOT NULL,
  job uuid NOT NULL,
  PRIMARY KEY (tenant, dispatch, hash)
);
-- Serves explain-url: the dispatches that have seen a URL.
CREATE INDEX url_hash ON url (tenant, hash);

-- One row a page, its links together in document order.
CREATE TABLE page_link (
  tenant text NOT NULL,
  dispatch uuid NOT NULL,
  url_hash uuid NOT NULL,
  job uuid NOT NULL,
  links text[] NOT NULL,
  PRIMARY KEY (tenant, dispatch, url_hash)
);

-- An entry of a raw stream counts only through its row here, written in its job's own commit.
CREATE TABLE raw_result (
  tenant text NOT NULL,
  generation bigint NOT NULL,
  stream text NOT NULL,
  ms bigint NOT NULL,
  seq bigint NOT NULL,
  dispatch uuid NOT NULL,
  job uuid NOT NULL,
  PRIMARY KEY (tenant, stream, ms, seq, generation)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

-- A segment is planned before its object is written; a successor resumes exactly that plan.
CREATE TABLE archive_segment (
  tenant text NOT NULL,
  generation bigint NOT NULL,
  stream text NOT NULL,
  first_ms bigint NOT NULL,
  first_seq bigint NOT NULL,
  last_ms bigint NOT NULL,
  last_seq bigint NOT NULL,
  key text NOT NULL,
  entries int NOT NULL,
  bytes bigint NOT NULL,
  sha256 text NOT NULL,
  planned_at timestamptz NOT NULL DEFAULT now(),
  verified_at timestamptz,
  PRIMARY KEY (tenant, stream, generation, first_ms, first_seq),
  CONSTRAINT archive_segment_disjoint EXCLUDE USING gist (
    tenant WITH =, stream WITH =, generation WITH =,
    numrange(first_ms::numeric * 18446744073709551616 + first_seq,
             last_ms::numeric * 18446744073709551616 + last_seq, '[]') WITH &&)
);
-- Serves planned-segments.
CREATE INDEX archive_segment_planned ON archive_segment (tenant, stream) WHERE verified_at IS NULL;

-- What belongs to no tenant: hosts as the network shows them, and the machinery itself.
CREATE TABLE host (
  host text PRIMARY KEY,
  addresses text[] NOT NULL DEFAULT '{}',
  state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'ready', 'held', 'dead', 'refused')),
  robots bytea,
  robots_status int2,
  robots_url text,
  robots_hops int2 NOT NULL DEFAULT 0,
  crawl_delay_ms bigint,
  failures int NOT NULL DEFAULT 0,
  hold_until timestamptz,
  valid_until timestamptz NOT NULL DEFAULT '-infinity',
  version bigint NOT NULL DEFAULT 0,
  last_error text,
  checked_at timestamptz
);

CREATE TABLE worker (
  id uuid PRIMARY KEY,
  slot int NOT NULL,
  generation bigint NOT NULL,
  host text NOT NULL,
  address text NOT NULL,
  region text,
  roles text[] NOT NULL,
  version text NOT NULL,
  pid int NOT NULL,
  permits int NOT NULL,
  registered_at timestamptz NOT NULL DEFAULT now(),
  draining_at timestamptz,
  ended_at timestamptz,
  lost_at timestamptz,
  reason text,
  released_at timestamptz
);
-- Serves register-worker: a slot, and with it a consumer name, has one holder.
CREATE UNIQUE INDEX worker_slot ON worker (slot) WHERE released_at IS NULL;

CREATE TABLE generation (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  number bigint NOT NULL,
  run_id text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO generation (number, run_id) VALUES (0, '');

CREATE TABLE leader_lease (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  epoch bigint NOT NULL,
  holder uuid,
  expires_at timestamptz NOT NULL
);
INSERT INTO leader_lease (epoch, expires_at) VALUES (0, '-infinity');

-- Invariant 2: an effect of a worker is authorised by share locks on its incarnation and on the
-- generation. An exception ends the whole transaction, so everything may be sent in one go.
CREATE FUNCTION authorise_worker(worker_id uuid, generation_number bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM worker WHERE id = worker_id AND lost_at IS NULL AND ended_at IS NULL FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'worker % is lost or has ended', worker_id USING ERRCODE = 'DD001';
  END IF;
  PERFORM 1 FROM generation WHERE number = generation_number FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'generation % is over', generation_number USING ERRCODE = 'DD001';
  END IF;
END $$;

-- Invariant 7: every write of the leader proves its epoch.
CREATE FUNCTION authorise_leader(leader_epoch bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM 1 FROM leader_lease WHERE epoch = leader_epoch AND expires_at > clock_timestamp() FOR SHARE;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'epoch % does not lead', leader_epoch USING ERRCODE = 'DD002';
  END IF;
END $$;

-- The daily partition of crawl_log for a day. Runs as the owner: the pipeline's role makes no tables.
CREATE FUNCTION ensure_log_partition(day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
  name text := 'crawl_log_' || to_char(day, 'YYYYMMDD');
BEGIN
  IF to_regclass(name) IS NOT NULL THEN RETURN false; END IF;
  EXECUTE format('CREATE TABLE %I PARTITION OF crawl_log FOR VALUES FROM (%L) TO (%L)',
                 name, day::timestamptz, (day + 1)::timestamptz);
  RETURN true;
END $$;
SELECT ensure_log_partition((now() AT TIME ZONE 'UTC')::date + d) FROM generate_series(0, 2) d;

DO $$
DECLARE
  t text;
BEGIN
  FOREACH t IN ARRAY ARRAY['dispatch', 'dispatch_progress', 'dispatch_delta', 'crawl_schedule', 'crawl_log',
                           'url', 'page_link', 'raw_result', 'archive_segment'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', t);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', t);
    EXECUTE format('CREATE POLICY pipeline ON %I TO dodo_pipeline USING (true) WITH CHECK (true)', t);
    EXECUTE format('CREATE POLICY tenant ON %I TO dodo_tenant USING (tenant = current_setting(''dodo.tenant'')) '
                   'WITH CHECK (tenant = current_setting(''dodo.tenant''))', t);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO dodo_pipeline', t);
    EXECUTE format('GRANT SELECT ON %I TO dodo_tenant', t);
  END LOOP;
END $$;
GRANT INSERT ON dispatch, dispatch_progress, dispatch_delta, crawl_schedule, url TO dodo_tenant;
GRANT SELECT ON tenant, host, generation TO dodo_tenant;
GRANT SELECT, INSERT, UPDATE, DELETE ON host, worker TO dodo_pipeline;
GRANT SELECT, UPDATE ON generation, leader_lease TO dodo_pipeline;
GRANT SELECT ON tenant TO dodo_pipeline;
