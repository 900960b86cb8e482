-- The proxies of the pool by address, host:port, and how each fares. No credentials are here, and nothing of a tenant.
CREATE TABLE proxy (
  address text PRIMARY KEY,
  region text NOT NULL,
  -- In quarantine until then; after that one request at a time decides. Null: healthy.
  quarantined_until timestamptz,
  -- Quarantines in a row: each lasts longer.
  strikes integer NOT NULL,
  successes bigint NOT NULL,
  blocks bigint NOT NULL,
  failures bigint NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON proxy TO dodo_pipeline;
