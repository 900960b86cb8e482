"""A fleet over time: under full load, restarted in turn, restarted again and again."""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench_cluster import JOBS, Cluster, until
from bench_process import open_files, resident_mib
from bench_row import Row, at_most, exactly
from bench_site import SlowSite

FLEET = 4
# One batch of pages is submitted this often.
EVERY_S = 0.1
BATCH = 5
PAGE_S = 0.2
ROUNDS = 3


class Load(threading.Thread):
    """Submits pages of a slow site at a steady rate, and remembers when."""

    def __init__(self, cluster: Cluster, site: SlowSite) -> None:
        super().__init__(daemon=True)
        self.cluster, self.site = cluster, site
        self.submitted: dict[str, float] = {}
        self.dispatches: list[str] = []
        self.over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        number = 0
        due = time.monotonic()
        try:
            while not self.over.is_set():
                paths = [f"/{number + at}" for at in range(BATCH)]
                number += BATCH
                now = time.time()
                self.submitted |= dict.fromkeys(paths, now)
                self.dispatches.append(self.cluster.crawl([self.site.url(path) for path in paths]))
                due += EVERY_S
                self.over.wait(max(0.0, due - time.monotonic()))
        except (OSError, SystemExit) as error:
            self.error = error

    def end(self) -> None:
        self.over.set()
        self.join()
        if self.error:
            raise self.error
        until("the pages are not all fetched", lambda: all(self.site.times(path) for path in self.submitted))
        names = ", ".join(f"'{dispatch}'" for dispatch in self.dispatches)
        count = f"SELECT count(*) FROM crawl_log WHERE kind = 'crawl' AND dispatch IN ({names})"
        until("the jobs do not end", lambda: int(self.cluster.sql.one(count)) >= len(self.submitted), pause_s=0.1)


@contextmanager
def loaded(options: argparse.Namespace) -> Iterator[tuple[Cluster, SlowSite, Load]]:
    site = SlowSite(PAGE_S)
    with Cluster(options.bin, FLEET, DODO_OPEN=f"127.0.0.1:{site.port}") as cluster:
        load = Load(cluster, site)
        load.start()
        time.sleep(2)
        yield cluster, site, load


def false_deaths(options: argparse.Namespace) -> list[Row]:
    """A busy loop on each core beside a crawl and its whole cluster."""
    with loaded(options) as (cluster, _, load):
        loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"], cwd=cluster.work) for _ in range(os.cpu_count() or 1)]
        try:
            time.sleep(options.minutes * 60)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        load.end()
        lost = int(cluster.sql.one("SELECT count(*) FROM worker WHERE lost_at IS NOT NULL"))
        generations = int(cluster.sql.one("SELECT number FROM generation"))
    what = f"workers declared lost in {options.minutes} min with every core busy"
    return [exactly("deaths", what, lost, 0), exactly("deaths", "generations begun meanwhile", generations - 1, 0)]


def rolling(options: argparse.Namespace) -> list[Row]:
    """Each worker in turn: SIGTERM, its end, its replacement. The pages take less than the grace."""
    with loaded(options) as (cluster, site, load):
        for _ in range(ROUNDS):
            for worker in list(cluster.workers):
                worker.process.terminate()
                until("a worker does not end", lambda: worker.process.poll() is not None)
                if worker.process.returncode != 0:
                    sys.exit(f"bench: a worker that drained ended with {worker.process.returncode}")
                cluster.workers.remove(worker)
                cluster.add_worker()
                cluster.await_workers()
        load.end()
        delays = [site.times(path)[0] - at for path, at in load.submitted.items()]
        twice = sum(len(site.times(path)) - 1 for path in load.submitted)
        burned = int(cluster.sql.one("SELECT count(*) FROM crawl_log WHERE attempt > 0"))
        lost = int(cluster.sql.one("SELECT count(*) FROM worker WHERE lost_at IS NOT NULL"))
    return [
        exactly("rolling", f"tries burnt by {ROUNDS * FLEET} graceful restarts, {len(delays)} pages", burned, 0),
        exactly("rolling", "pages fetched twice, by the site's log", twice, 0),
        exactly("rolling", "workers declared lost", lost, 0),
        at_most("rolling", "submit to its request at the site, most of all pages", max(delays), 1, "s", 2),
    ]


def restarts(options: argparse.Namespace) -> list[Row]:
    """Every other worker is killed, every other one ends in order; what the servers hold is read before and after."""
    with loaded(options) as (cluster, _, load):
        warm_up = max(10, options.restarts // 10)
        restart(cluster, warm_up)
        first = held(cluster)
        restart(cluster, options.restarts)
        last = held(cluster)
        load.end()
        # The last reports are on their way; what is left after that is a figure and not an error.
        deadline = time.monotonic() + 30
        while (left := pending(cluster)) and time.monotonic() < deadline:
            time.sleep(0.1)
    rows = []
    for name, (before, slack) in first.items():
        after = last[name][0]
        what = f"{name}, before and after {options.restarts} restarts"
        rows.append(Row("restarts", what, f"{before:.0f} -> {after:.0f}", f"+{slack:.0f} at most", after <= before + slack))
    return [*rows, exactly("restarts", "entries pending at the end, without load", left, 0)]


def restart(cluster: Cluster, count: int) -> None:
    for number in range(count):
        worker = cluster.workers[0]
        if number % 2:
            worker.process.kill()
        else:
            worker.process.terminate()
        until("a worker does not end", lambda: worker.process.poll() is not None)
        cluster.workers.remove(worker)
        cluster.add_worker()
        cluster.await_workers()


def held(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """What grows if something leaks, with how much it may differ between two looks under load."""
    # The reaper has taken back what the last killed worker held.
    time.sleep(3)
    consumers = cluster.redis("XINFO", "CONSUMERS", JOBS, "workers")
    assert isinstance(consumers, list)
    scheduler, redis = cluster.schedulers[0].process.pid, cluster.redis.process.pid
    clients = str(cluster.redis("INFO", "clients")).split("connected_clients:")[1].split("\r\n")[0]
    return {
        "consumers in Redis": (len(consumers), 2),
        "jobs delivered and not settled": (pending(cluster), 2 * BATCH * PAGE_S / EVERY_S),
        "connections to Postgres": (float(cluster.sql.one("SELECT count(*) FROM pg_stat_activity WHERE usename = 'dodo'")), 10),
        "connections to Redis": (float(clients), 4),
        "open files of the scheduler": (open_files(scheduler), 4),
        "open files of Redis": (open_files(redis), 4),
        "MiB resident, scheduler": (resident_mib(scheduler), 8),
        "MiB resident, Redis": (resident_mib(redis), 8),
    }


def pending(cluster: Cluster) -> int:
    answer = cluster.redis("XPENDING", JOBS, "workers")
    assert isinstance(answer, list)
    return int(answer[0])
