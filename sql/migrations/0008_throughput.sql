-- After a burst the planner may believe crawl_schedule to be empty. Every index that could then answer a lookup by
-- (tenant, id) costs the same to it, and the one it takes may hold the whole schedule under one tenant. So nothing but
-- the primary key may be able to answer: the frontier's index is partial, and jobs of a dispatch have none at all.
DROP INDEX crawl_schedule_dispatch;
DROP INDEX crawl_schedule_frontier;
-- Serves refill-hosts, next-due, scan-hosts, oldest-due and backlog: the jobs of a host in their order, the hosts in
-- theirs. A call that has begun is nobody's to issue.
CREATE INDEX crawl_schedule_frontier ON crawl_schedule (tenant, host, priority, run_at, id) WHERE started_at IS NULL;

-- The links of a page are what a commit writes most of; lz4 takes two thirds of the default's time for them.
DO $$
BEGIN
  ALTER TABLE page_link ALTER COLUMN links SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
  NULL; -- A server that was built without it.
END $$;

-- Where a host's robots.txt is redirected to, while it is to be read there: another origin has clocks of its own.
ALTER TABLE host ADD COLUMN robots_host text, ADD COLUMN robots_address text;
