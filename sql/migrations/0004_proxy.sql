-- Where a worker's requests leave: host:port of its proxy, never its credentials.
ALTER TABLE worker ADD COLUMN proxy text;
