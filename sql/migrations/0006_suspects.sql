-- Jobs whose worker was lost while it held them: whoever was lost with it twice is a suspect and runs alone on a
-- worker, and only a loss while alone counts against it.
ALTER TABLE crawl_schedule
  -- Workers that were lost while they held it.
  ADD COLUMN crashes int2 NOT NULL DEFAULT 0,
  -- The last of them: a leader that counts the same loss again counts nothing.
  ADD COLUMN crashed_with uuid,
  -- What they were lost of, the latest last.
  ADD COLUMN crash_reasons text[],
  -- The incarnation that runs it alone, or the last one that did.
  ADD COLUMN alone_by uuid,
  ADD COLUMN alone_crashes int2 NOT NULL DEFAULT 0;
-- Serves count-crashes: what a lost worker ran alone.
CREATE INDEX crawl_schedule_alone ON crawl_schedule (alone_by) WHERE alone_by IS NOT NULL;
-- Serves doomed-jobs and count-suspects.
CREATE INDEX crawl_schedule_suspect ON crawl_schedule (alone_crashes) WHERE crashes > 0;

ALTER TABLE crawl_log ADD COLUMN crashes int2 NOT NULL DEFAULT 0, ADD COLUMN alone_crashes int2 NOT NULL DEFAULT 0;
-- Serves count-events.
DROP INDEX crawl_log_dead;
CREATE INDEX crawl_log_dead ON crawl_log (finished_at) WHERE outcome IN ('dead', 'quarantined');
-- Serves list-dead.
DROP INDEX crawl_log_dead_letter;
CREATE INDEX crawl_log_dead_letter ON crawl_log (tenant, id)
  WHERE outcome IN ('dead', 'failed', 'unknown', 'quarantined') AND replayed_by IS NULL;
