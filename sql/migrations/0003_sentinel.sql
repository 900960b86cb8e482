-- The sentinel: incidents, and the outbox of their notices. Operators' tables: they belong to no tenant.

CREATE TABLE incident (
  id uuid PRIMARY KEY,
  rule text NOT NULL,
  metric text NOT NULL,
  severity text NOT NULL CHECK (severity IN ('info', 'warning', 'critical')),
  -- What was seen when it fired, what to do about it, and what was seen when it was resolved.
  summary text NOT NULL,
  advice text NOT NULL DEFAULT '',
  fired_at timestamptz NOT NULL,
  resolved_at timestamptz,
  outcome text
);
-- Serves open-incident: two sentinels that see the same make one incident of it.
CREATE UNIQUE INDEX incident_open ON incident (rule) WHERE resolved_at IS NULL;
-- Serves list-incidents.
CREATE INDEX incident_latest ON incident (fired_at, id);
-- Serves replay-incident: an incident of the same rule at the same time is the same one.
CREATE INDEX incident_rule ON incident (rule, fired_at);

-- A notice is due until it has a delivered_at: whoever is killed in between, it is sent again.
CREATE TABLE notice (
  incident uuid NOT NULL REFERENCES incident (id) ON DELETE CASCADE,
  event text NOT NULL CHECK (event IN ('fired', 'resolved')),
  channel text NOT NULL,
  attempts int NOT NULL DEFAULT 0,
  next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  delivered_at timestamptz,
  last_error text,
  PRIMARY KEY (incident, event, channel)
);
-- Serves claim-notice.
CREATE INDEX notice_due ON notice (channel, next_at) WHERE delivered_at IS NULL;

-- Serve count-events.
CREATE INDEX worker_lost ON worker (lost_at) WHERE lost_at IS NOT NULL;
CREATE INDEX crawl_log_dead ON crawl_log (finished_at) WHERE outcome = 'dead';

GRANT SELECT, INSERT, UPDATE, DELETE ON incident, notice TO dodo_pipeline;
