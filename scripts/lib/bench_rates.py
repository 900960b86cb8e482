"""How fast: durable jobs a second, one job's way through, and the same with a long queue."""

import argparse
import statistics
import threading
import time

from bench_cluster import NOOPS_MAX, Cluster
from bench_crawl import memory_rows
from bench_row import Row, at_least, at_most, percentile

NOOP_RUNS = 3
WARM_UP = 5_000
LATENCY_SAMPLES = 500
REDIS_MIB_MAX = 64


def noop(options: argparse.Namespace) -> list[Row]:
    """Submitted over the API to the last one committed and logged, on a warm cluster; the median of several runs."""
    with Cluster(options.bin, options.workers) as cluster:
        rates = noop_rates(cluster, options.jobs)
        roots = [child.pid for child in cluster.children]
        what = f"durable no-op jobs/s, {options.jobs} at once (runs: {', '.join(f'{rate:.0f}' for rate in rates)})"
        return [at_least("noop", what, statistics.median(rates), 15_000, "jobs/s"), *memory_rows("noop", roots)]


def noop_rates(cluster: Cluster, jobs: int) -> list[float]:
    cluster.await_finished(cluster.submit_noops(WARM_UP), WARM_UP)
    rates = []
    for _ in range(NOOP_RUNS):
        began = time.time()
        rates.append(jobs / (cluster.await_finished(cluster.submit_noops(jobs), jobs) - began))
    return rates


def latency(options: argparse.Namespace) -> list[Row]:
    """One no-op job at a time on an idle cluster: from before its request is sent to its start at a worker, and to the
    stamp of its commit. The start is kept in whole milliseconds, so one is added."""
    with Cluster(options.bin, options.workers) as cluster:
        starts, ends = [], []
        for number in range(LATENCY_SAMPLES + 20):
            began = time.time()
            dispatch = cluster.submit_noops(1)
            cluster.await_finished(dispatch, 1)
            text = cluster.sql.one(f"SELECT extract(epoch FROM started_at) || ' ' || extract(epoch FROM finished_at) FROM crawl_log WHERE dispatch = '{dispatch[0]}'")
            # The first ones fill caches and pools.
            if number >= 20:
                started, ended = map(float, text.split())
                starts.append((started - began) * 1000 + 1)
                ends.append((ended - began) * 1000)
            time.sleep(0.005)
    what = f"submit to start, {len(starts)} jobs one by one"
    rows = [at_most("latency", f"{what}: p50", percentile(starts, 0.5), 5, "ms", 1)]
    rows.append(at_most("latency", f"{what}: p99", percentile(starts, 0.99), 20, "ms", 1))
    return [*rows, Row("latency", "submit to the stamp of its commit: p50", f"{percentile(ends, 0.5):.1f} ms")]


def backlog(options: argparse.Namespace) -> list[Row]:
    """Jobs submitted over the API while no worker runs; then workers start and take the first ones. The rate is that of
    the first request's jobs, from its first tenth on, and that of an empty cluster is measured in the same way."""
    with Cluster(options.bin, options.workers) as cluster:
        cluster.await_finished(cluster.submit_noops(WARM_UP), WARM_UP)
        empty = statistics.median(steady_rate(cluster, cluster.submit_noops(NOOPS_MAX)) for _ in range(NOOP_RUNS))
        for worker in list(cluster.workers):
            cluster.kill(worker)
        peak = [cluster.redis.memory_mib()]
        dispatches = cluster.submit_noops(options.backlog)
        peak.append(cluster.redis.memory_mib())
        over = threading.Event()
        watcher = threading.Thread(target=watch_memory, args=(cluster, peak, over))
        for _ in range(options.workers):
            cluster.add_worker()
        cluster.await_workers()
        watcher.start()
        rate = steady_rate(cluster, dispatches[:1])
        over.set()
        watcher.join()
    rows = [
        Row("backlog", f"jobs/s with {options.backlog} jobs pending", f"{rate:.0f}"),
        Row("backlog", f"jobs/s of an empty cluster, median of {NOOP_RUNS}", f"{empty:.0f}"),
        at_most("backlog", "times slower than the empty cluster", empty / rate, 2, "", 2),
        at_most("backlog", f"Redis' used memory at most, {options.backlog} jobs pending, workers running", max(peak), REDIS_MIB_MAX, "MiB", 1),
    ]
    return rows


def steady_rate(cluster: Cluster, dispatches: list[str]) -> float:
    """Jobs a second of one request, from its first tenth to its end; the next one is submitted after that."""
    total = cluster.api(f"/v1/dispatches/{dispatches[0]}")["progress"]["scheduled"]
    began, at_first = cluster_reaches(cluster, dispatches, max(1, total // 10))
    ended, at_last = cluster_reaches(cluster, dispatches, total)
    return (at_last - at_first) / (ended - began)


def cluster_reaches(cluster: Cluster, dispatches: list[str], count: int) -> tuple[float, int]:
    """When so many had ended, and how many those were."""
    deadline = time.monotonic() + 600
    while (finished := cluster.finished(dispatches)) < count:
        if time.monotonic() > deadline:
            raise OSError(f"{finished} of {count} jobs are done after 600 s")
        time.sleep(0.02)
    return time.time(), finished


def watch_memory(cluster: Cluster, peak: list[float], over: threading.Event) -> None:
    """Alone on Redis' connection while it runs."""
    while not over.wait(0.05):
        peak.append(cluster.redis.memory_mib())


