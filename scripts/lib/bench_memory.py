"""What is resident at most where much is held at once: a worker that waits for many answers, a scheduler that knows many hosts."""

import argparse
import time

from bench_cluster import Cluster, until
from bench_process import peak_mib
from bench_row import Row, at_most
from bench_site import SlowSite

# Requests under way at once, what each waits, and what it brings.
PERMITS, LATENCY_S, PAGES, PAGE_BYTES = 256, 0.5, 12_000, 20_000
HOSTS = 1_000_000
# A scheduler looks through all hosts once a minute: two looks, and a bit.
LOOKS_S = 150
# Hosts with an address of their own and a job that is due, as if they had just been prepared.
FILL = f"""
WITH h AS (
  INSERT INTO host (host, addresses, state, robots_status, valid_until, version)
  SELECT 'http://h' || n || '.example', ARRAY[format('10.%s.%s.%s', n >> 16, (n >> 8) & 255, n & 255)], 'ready', 404,
         now() + interval '1 day', 1 FROM generate_series(0, {HOSTS} - 1) n RETURNING host),
j AS (
  INSERT INTO crawl_schedule (tenant, id, dispatch, kind, host, url, url_hash)
  SELECT 'default', gen_random_uuid(), '{{dispatch}}', 'crawl', host, host || '/', gen_random_uuid() FROM h RETURNING 1)
INSERT INTO dispatch_delta (tenant, dispatch, scheduled) SELECT 'default', '{{dispatch}}', count(*) FROM j"""


def held(options: argparse.Namespace) -> list[Row]:
    return [worker(options), scheduler(options)]


def worker(options: argparse.Namespace) -> Row:
    site = SlowSite(LATENCY_S, PAGES, PAGE_BYTES)
    opened = site.url("/")[len("http://") : -1]
    with Cluster(options.bin, 1, DODO_OPEN=opened, DODO_WORKER_PERMITS=PERMITS) as cluster:
        body = {"urls": [site.url("/0")], "delay_ms": 0, "host_concurrency": 2 * PERMITS}
        dispatch = cluster.api("/v1/crawls", body)["dispatch"]
        cluster.await_finished([dispatch], PAGES)
        peak = peak_mib(cluster.workers[0].pid)
    what = f"MiB resident at most: a worker with {site.most} requests under way at once, pages of {PAGE_BYTES // 1000} KB"
    return at_most("held", what, peak, 150, "MiB")


def scheduler(options: argparse.Namespace) -> Row:
    with Cluster(options.bin, 0, DODO_CONTACT="https://example.org/bench") as cluster:
        dispatch = cluster.api("/v1/crawls", {"urls": ["http://h.example/"], "delay_ms": 1000})["dispatch"]
        cluster.sql(FILL.format(dispatch=dispatch))
        until("the jobs are not counted", lambda: cluster.api("/v1/status")["jobs_pending"] > HOSTS)
        time.sleep(LOOKS_S)
        peak = peak_mib(cluster.schedulers[0].process.pid)
    return at_most("held", f"MiB resident at most: a scheduler, {HOSTS:,} hosts with work", peak, 300, "MiB")
