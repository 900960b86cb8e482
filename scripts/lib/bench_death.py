"""What dies: workers, the leader, Redis' whole content; and how soon the work goes on."""

import argparse
import os
import signal
import sys
import time

from bench_cluster import JOBS, Cluster, Worker, until
from bench_row import Row, at_most, exactly, percentile
from bench_site import SlowSite

FLEET = 4
PERMITS = 8
# Jobs held at once: three workers have room for them all, so that what is measured is the loss and not a queue.
HELD = 24
LEADERS = 10
# Far longer than the lease.
WAKES_S = 30
LINES_MAX = 9


def kill(options: argparse.Namespace) -> list[Row]:
    """kill -9 of a worker whose jobs wait for a site's answer, to the moment the last of them is asked for again."""
    samples, jobs = deaths(options, options.kills, signal.SIGKILL)
    what = f"kill -9 of a worker to the last of its jobs running elsewhere, {len(samples)} kills, {jobs} jobs"
    rows = [at_most("kill", f"{what}: p50", percentile(samples, 0.5), 1, "s", 2)]
    return [*rows, at_most("kill", f"{what}: p99", percentile(samples, 0.99), 2, "s", 2)]


def freeze(options: argparse.Namespace) -> list[Row]:
    """The same with SIGSTOP: its connections stay open, only its heart stops."""
    samples, jobs = deaths(options, max(1, options.kills // 5), signal.SIGSTOP)
    what = f"SIGSTOP of a worker to the last of its jobs running elsewhere, {len(samples)} times, {jobs} jobs: p99"
    held, late = wakes(options)
    return [
        at_most("freeze", what, percentile(samples, 0.99), 5, "s", 2),
        exactly("freeze", f"late results that show of a worker that held {held} jobs and wakes after {WAKES_S} s", late, 0),
    ]


def wakes(options: argparse.Namespace) -> tuple[int, int]:
    """How many jobs a worker held when it was stopped, and how many rows came of it when it went on."""
    site = SlowSite(None)
    with Cluster(options.bin, FLEET, DODO_WORKER_PERMITS=PERMITS, DODO_OPEN=f"127.0.0.1:{site.port}") as cluster:
        _, dispatch, victim = occupy(cluster, site, "")
        held = len(cluster.held(victim))
        at = time.time()
        cluster.kill(victim, signal.SIGSTOP)
        # The others end its jobs; its own answers lie in its sockets when it wakes.
        until("the jobs do not end", lambda: site.release() or cluster.finished([dispatch]) == HELD, pause_s=0.05)
        time.sleep(max(0.0, at + WAKES_S - time.time()))
        os.kill(victim.pid, signal.SIGCONT)
        anew = f"SELECT count(*) FROM worker WHERE pid = {victim.pid} AND registered_at > to_timestamp({at + WAKES_S})"
        until("the worker that woke does not register anew", lambda: int(cluster.sql.one(anew)) > 0)
        # It has nothing left to write by now.
        time.sleep(2)
        query = f"SELECT (SELECT count(*) FROM crawl_log WHERE dispatch = '{dispatch}') + (SELECT count(*) FROM page_link WHERE dispatch = '{dispatch}')"
        ended = f"SELECT count(*) FROM crawl_log WHERE dispatch = '{dispatch}' AND finished_at > to_timestamp({at + WAKES_S})"
        rows, late = int(cluster.sql.one(query)), int(cluster.sql.one(ended))
        return held, late + max(0, rows - 2 * HELD)


def deaths(options: argparse.Namespace, count: int, number: signal.Signals) -> tuple[list[float], int]:
    site = SlowSite(None)
    env = {"DODO_WORKER_PERMITS": PERMITS, "DODO_OPEN": f"127.0.0.1:{site.port}"}
    samples: list[float] = []
    moved = 0
    with Cluster(options.bin, FLEET, **env) as cluster:
        for turn in range(count):
            paths, dispatch, victim = occupy(cluster, site, f"/{turn}")
            at = cluster.kill(victim, number)
            lost = [path for path in paths_of(cluster, site, cluster.held(victim)) if path in paths]
            if not lost:
                sys.exit("bench: the worker that was killed held no job")
            until("its jobs do not run elsewhere", lambda: all(site.times(path)[-1] > at for path in lost))
            samples.append(max(site.times(path)[-1] for path in lost) - at)
            moved += len(lost)
            # The site holds what comes late, so it is let go again and again.
            until("the jobs do not end", lambda: site.release() or cluster.finished([dispatch]) == HELD, pause_s=0.05)
            if number == signal.SIGSTOP:
                os.kill(victim.pid, signal.SIGKILL)
                victim.process.wait()
            cluster.add_worker()
            cluster.await_workers()
    return samples, moved


def occupy(cluster: Cluster, site: SlowSite, under: str) -> tuple[list[str], str, Worker]:
    """Pages that wait for the site's answer, their dispatch, and the worker that holds most of them."""
    paths = [f"{under}/{page}" for page in range(HELD)]
    dispatch = cluster.crawl([site.url(path) for path in paths])
    until("the jobs do not start", lambda: all(site.times(path) for path in paths))
    return paths, dispatch, max(cluster.workers, key=lambda worker: len(cluster.held(worker)))


def paths_of(cluster: Cluster, site: SlowSite, jobs: list[str]) -> list[str]:
    names = ", ".join(f"'{job}'" for job in jobs) or "NULL"
    rows = cluster.sql(f"SELECT url FROM crawl_schedule WHERE id::text IN ({names})")
    return [url.removeprefix(site.url("")) for (url,) in rows if url]


def leader(options: argparse.Namespace) -> list[Row]:
    """kill -9 of the leader to the commit of a no-op job that only its successor can have issued."""
    samples = []
    with Cluster(options.bin, options.workers, schedulers=2) as cluster:
        for _ in range(LEADERS):
            first = cluster.leader()
            if first is None:
                sys.exit("bench: nobody leads")
            at = cluster.kill(first)
            dispatch = cluster.submit_noops(1)
            cluster.await_finished(dispatch, 1)
            query = f"SELECT extract(epoch FROM finished_at) FROM crawl_log WHERE dispatch = '{dispatch[0]}'"
            samples.append(float(cluster.sql.one(query)) - at)
            cluster.add_scheduler()
            until("nobody leads", lambda: cluster.leader() is not None)
    what = f"kill -9 of the leader to the next job issued by another, {len(samples)} times"
    rows = [Row("leader", f"{what}: p50", f"{percentile(samples, 0.5):.2f} s")]
    return [*rows, at_most("leader", f"{what}: most", max(samples), 5, "s", 2)]


def wipe(options: argparse.Namespace) -> list[Row]:
    """FLUSHALL while no-op jobs are pending and workers run."""
    with Cluster(options.bin, options.workers) as cluster:
        dispatches = cluster.submit_noops(options.wiped)
        until("no job ends", lambda: cluster.finished(dispatches) > 0)
        pending = options.wiped - cluster.finished(dispatches)
        before = len(cluster.log_lines())
        cluster.redis("FLUSHALL")
        at = time.time()
        groups = until("the group does not come back", lambda: group_exists(cluster), pause_s=0.002) - at
        window = until("the window does not come back", lambda: added(cluster) > 0, pause_s=0.002) - at
        cluster.await_finished(dispatches, options.wiped)
        # Let what is said at the end be said.
        time.sleep(2)
        # That a dispatch is done would be said without the wipe as well.
        lines = [line for line in cluster.log_lines()[before:] if "dispatch done" not in line]
        names = ", ".join(f"'{dispatch}'" for dispatch in dispatches)
        (logged, once) = cluster.sql(f"SELECT count(*), count(DISTINCT id) FROM crawl_log WHERE dispatch IN ({names})")[0]
    if len(lines) > LINES_MAX:
        print("\n".join(lines), file=sys.stderr)
    return [
        at_most("wipe", f"FLUSHALL with {pending} jobs pending: the group is back", groups, 1, "s", 2),
        at_most("wipe", "the window is published again", window, 2, "s", 2),
        at_most("wipe", f"lines logged of it, {options.workers} workers", len(lines), LINES_MAX, ""),
        exactly("wipe", "jobs lost", options.wiped - int(once), 0),
        exactly("wipe", "jobs logged twice", int(logged) - int(once), 0),
    ]


def group_exists(cluster: Cluster) -> bool:
    try:
        return bool(cluster.redis("XINFO", "GROUPS", JOBS))
    except RuntimeError:
        return False


def added(cluster: Cluster) -> int:
    """Entries ever added to the stream of jobs."""
    try:
        answer = cluster.redis("XINFO", "STREAM", JOBS)
    except RuntimeError:
        return 0
    assert isinstance(answer, list)
    return answer[answer.index("entries-added") + 1]


