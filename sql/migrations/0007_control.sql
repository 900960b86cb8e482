-- Control of dispatches: paused, resumed, cancelled, ended by their budget.

ALTER TABLE dispatch
  -- Nothing of it is issued while this is set.
  ADD COLUMN paused_at timestamptz,
  -- What is left of it ends with this outcome, and what is added meanwhile too; `note` says why.
  ADD COLUMN ending text CHECK (ending IN ('cancelled', 'budget')),
  ADD COLUMN note text;
-- Serves ending-dispatches.
CREATE INDEX dispatch_ending ON dispatch (tenant, id) WHERE ending IS NOT NULL AND state = 'running';
-- Serves jobs-of-dispatch.
CREATE INDEX crawl_schedule_dispatch ON crawl_schedule (tenant, dispatch);
GRANT UPDATE (paused_at, ending, note) ON dispatch TO dodo_tenant;

-- The terms of a dispatch: budgets, tries, a priority (the higher goes first; crawl_schedule.priority, which sorts
-- ascending, holds its negative), a start.
ALTER TABLE dispatch
  ADD COLUMN max_bytes bigint,
  ADD COLUMN max_seconds bigint,
  ADD COLUMN retries int2,
  ADD COLUMN priority int2 NOT NULL DEFAULT 0,
  ADD COLUMN start_at timestamptz;
-- Serves spend-budgets.
CREATE INDEX dispatch_budget ON dispatch (tenant, id)
  WHERE state = 'running' AND ending IS NULL AND (max_bytes IS NOT NULL OR max_seconds IS NOT NULL);

-- Refusals (429, 503): a job's, which cost it no try; and a host's in a row.
ALTER TABLE crawl_schedule ADD COLUMN refusals int2 NOT NULL DEFAULT 0;
ALTER TABLE host ADD COLUMN refusals int NOT NULL DEFAULT 0;

-- Timers: what is submitted again and again. That of a source's document (every_s) goes with its source.
CREATE TABLE timer (
  tenant text NOT NULL REFERENCES tenant (id),
  id uuid NOT NULL,
  key text,
  kind text NOT NULL CHECK (kind IN ('crawl', 'noop', 'paged')),
  request jsonb NOT NULL,
  source text,
  every_s bigint,
  cron text,
  timezone text,
  -- None when it never comes again.
  next_at timestamptz,
  last_at timestamptz,
  last_dispatch uuid,
  last_error text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (tenant, id),
  CONSTRAINT timer_key UNIQUE (tenant, key),
  CONSTRAINT timer_source UNIQUE (tenant, source),
  CHECK ((every_s IS NULL) <> (cron IS NULL))
);
-- Serves due-timers.
CREATE INDEX timer_due ON timer (next_at) WHERE next_at IS NOT NULL;
INSERT INTO timer (tenant, id, kind, request, source, every_s, next_at)
SELECT tenant, gen_random_uuid(), 'paged', jsonb_build_object('source', name), name, (document ->> 'every_s')::bigint, next_at
  FROM source WHERE next_at IS NOT NULL AND document ->> 'every_s' IS NOT NULL;
ALTER TABLE source DROP COLUMN next_at;
ALTER TABLE timer ENABLE ROW LEVEL SECURITY;
ALTER TABLE timer FORCE ROW LEVEL SECURITY;
CREATE POLICY pipeline ON timer TO dodo_pipeline USING (true) WITH CHECK (true);
CREATE POLICY tenant ON timer TO dodo_tenant USING (tenant = current_setting('dodo.tenant'))
  WITH CHECK (tenant = current_setting('dodo.tenant'));
GRANT SELECT, INSERT, UPDATE, DELETE ON timer TO dodo_pipeline, dodo_tenant;
