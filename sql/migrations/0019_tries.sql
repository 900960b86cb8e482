-- The tries of a job before its last one, oldest first, each {at, ms, status, worker, error}: `dodo why` shows them. The last
-- twenty: null for a job that has needed none, as nearly all do.
ALTER TABLE crawl_schedule ADD COLUMN tries jsonb;
ALTER TABLE crawl_log ADD COLUMN tries jsonb;
