-- Ends the sessions of a worker that is being declared lost: a frozen one keeps its row share-locked. Runs as the
-- owner, since the pipeline's role may signal nobody; it reaches only sessions that the same login has opened
-- under that worker's name. Returns how many there were.
CREATE FUNCTION terminate_worker_sessions(worker_id uuid) RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))::int FROM pg_stat_activity
   WHERE application_name = 'dodo-worker:' || worker_id AND usename = session_user
     AND datname = current_database() AND pid <> pg_backend_pid()
$$;
REVOKE ALL ON FUNCTION terminate_worker_sessions (uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION terminate_worker_sessions (uuid) TO dodo_pipeline;
