-- How fast a host answers, smoothed, milliseconds: the delay that follows from it survives the leader who measured it.
ALTER TABLE host ADD COLUMN pace_ms bigint;
