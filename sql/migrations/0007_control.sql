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
