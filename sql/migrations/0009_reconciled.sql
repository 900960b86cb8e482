-- A generation is whole in Redis before the results that were lost with the one before are made again. A leader that
-- falls in between leaves that to its successor, who must know.
ALTER TABLE generation ADD COLUMN reconciled boolean NOT NULL DEFAULT true;
