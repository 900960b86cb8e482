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
