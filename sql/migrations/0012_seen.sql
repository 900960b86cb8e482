-- One index of the seen-set serves both of its questions, what a crawl has seen and which crawls have seen a URL: each new
-- link was written to two.

DROP INDEX url_hash;
ALTER TABLE url DROP CONSTRAINT url_pkey;
-- Serves finish-jobs, submit-jobs and explain-url.
ALTER TABLE url ADD PRIMARY KEY (tenant, hash, dispatch);
