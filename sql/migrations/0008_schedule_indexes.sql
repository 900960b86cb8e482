-- After a burst the planner may believe crawl_schedule to be empty. Every index that could then answer a lookup by
-- (tenant, id) costs the same to it, and the one it takes may hold the whole schedule under one tenant. So nothing but
-- the primary key may be able to answer: the frontier's index is partial, and jobs of a dispatch have none at all.
DROP INDEX crawl_schedule_dispatch;
DROP INDEX crawl_schedule_frontier;
-- Serves refill-hosts, next-due, scan-hosts, oldest-due and backlog: the jobs of a host in their order, the hosts in
-- theirs. A call that has begun is nobody's to issue.
CREATE INDEX crawl_schedule_frontier ON crawl_schedule (tenant, host, priority, run_at, id) WHERE started_at IS NULL;
