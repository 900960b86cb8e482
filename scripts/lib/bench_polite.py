"""A crawl of thousands of virtual hosts, judged by the log of their server: how polite it is, and how fast for that."""

import argparse
import collections
import dataclasses
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import polite_judge
import polite_web
from bench_cluster import Cluster, Worker, until
from bench_process import start
from bench_row import Row, exactly
from bench_server import await_port

FLEET = 16
# Each worker holds but few jobs, so that all have some.
PERMITS = 64
POLITE_MS, PACE_MS = 250, 500
LIMIT_S = 3600
# Something dies this often; a frozen worker wakes after its peers have long taken over.
FAULT_S = 15
FROZEN_S = 7
# What a process has answered and not yet told of when it dies.
UNHEARD_S = 1
SHOWN = 20


def polite(options: argparse.Namespace) -> list[Row]:
    """Workers and the leader are killed and workers frozen all the while."""
    done = crawl(options, POLITE_MS, with_faults=True)
    unheard = [(at_us - UNHEARD_S * 1_000_000, until_us) for _, at_us, until_us in done.faults]
    kinds = collections.Counter(kind for kind, _, _ in done.faults)
    return [
        *rows("polite", done, unheard),
        Row("polite", "faults meanwhile", ", ".join(f"{kind}: {n}" for kind, n in kinds.items())),
        Row("polite", f"requests/s, {POLITE_MS} ms apart, over all {done.seconds:.0f} s", f"{len(done.asks) / done.seconds:.0f}"),
    ]


def pace(options: argparse.Namespace) -> list[Row]:
    """Nothing dies."""
    done = crawl(options, PACE_MS, with_faults=False)
    whole, late, late_s = polite_judge.efficiency(done.hosts, done.asks)
    what = f"of the requests that politeness allows, {PACE_MS} ms apart"
    return [
        *rows("pace", done, []),
        Row("pace", f"{what}: where it allows at most {polite_judge.BOUND_S_MAX} a second, {late_s:.0f} s", f"{late:.1%}", ">= 95%", late >= 0.95),
        Row("pace", f"{what}: over all {done.seconds:.0f} s, the machine's own bound included", f"{whole:.1%}"),
        Row("pace", f"requests/s, {PACE_MS} ms apart", f"{len(done.asks) / done.seconds:.0f}"),
    ]


@dataclasses.dataclass
class Crawl:
    """What came of it: the log of the web, and what happened meanwhile."""

    hosts: dict[str, polite_web.Host]
    asks: list[polite_judge.Ask]
    # What, from when to when, microseconds.
    faults: list[tuple[str, int, int]]
    workers_lost: int
    generations: int
    leaders: int

    @property
    def seconds(self) -> float:
        return (max(ask.end_us for ask in self.asks) - self.asks[0].start_us) / 1e6


def rows(part: str, crawl: Crawl, unheard: list[tuple[int, int]]) -> list[Row]:
    hosts, asks = crawl.hosts, crawl.asks
    found = polite_judge.violations(hosts, asks, unheard)
    for line in found[:SHOWN]:
        print(line, file=sys.stderr)
    asked = [(ask.host, ask.path) for ask in asks if ask.status == 200 and ask.path != "/robots.txt"]
    wanted = sum(host.pages for host in hosts.values())
    return [
        exactly(part, f"violations in the site's log, {len(hosts)} hosts, {len(asks)} requests, {FLEET} workers", len(found), 0),
        exactly(part, f"pages never fetched, of {wanted}", wanted - len(set(asked)), 0),
        Row(part, "pages fetched more than once", str(len(asked) - len(set(asked)))),
        Row(part, "workers lost, generations and leaders meanwhile", f"{crawl.workers_lost}, {crawl.generations}, {crawl.leaders}"),
    ]


def crawl(options: argparse.Namespace, delay_ms: int, with_faults: bool) -> Crawl:
    web = polite_web.build(options.hosts, options.web, delay_ms)
    port = short_port()
    env = {
        "DODO_OPEN": ",".join(f"{host.name}:{port}" for host in web),
        "DODO_RESOLVE": ",".join({f"{'*.' * ('.' in host.name)}{host.name.split('.')[-1]}={host.address}" for host in web}),
        "DODO_CONTACT": "https://example.org/bench",
        "DODO_WORKER_PERMITS": PERMITS,
    }
    faults: list[tuple[str, int, int]] = []
    with Cluster(options.bin, FLEET, schedulers=2, **env) as cluster:
        log = cluster.work / "site.log"
        words = [sys.executable, "-B", pathlib.Path(polite_web.__file__).absolute(), len(web), options.web, delay_ms, port, log]
        site = start(words, cluster.work, subprocess.DEVNULL)
        cluster.children.append(site)
        await_port(port, site, "the site")
        dispatches = []
        for places in (1, 2):
            urls = [f"http://{host.name}:{port}/0" for host in web if host.places == places]
            if urls:
                body = {"urls": urls, "delay_ms": delay_ms, "host_concurrency": places}
                dispatches.append(cluster.api("/v1/crawls", body)["dispatch"])
        rng = random.Random(options.hosts)
        next_fault = time.monotonic() + FAULT_S
        deadline = time.monotonic() + LIMIT_S
        while not all(ended(cluster, dispatch) for dispatch in dispatches):
            if time.monotonic() > deadline:
                sys.exit(f"bench: the crawl was not done after {LIMIT_S} s")
            if with_faults and time.monotonic() > next_fault:
                faults.append(fault(cluster, rng, len(faults)))
                next_fault = time.monotonic() + FAULT_S
            time.sleep(0.5)
        site.terminate()
        if site.wait() != 0:
            sys.exit("bench: the site could not keep up, so its log says nothing")
        asks = polite_judge.read(log.read_text().splitlines())
        lost = int(cluster.sql.one("SELECT count(*) FROM worker WHERE lost_at IS NOT NULL"))
        generations = int(cluster.sql.one("SELECT number FROM generation"))
        leaders = int(cluster.sql.one("SELECT epoch FROM leader_lease"))
    return Crawl({host.name: host for host in web}, asks, faults, lost, generations, leaders)


def ended(cluster: Cluster, dispatch: str) -> bool:
    try:
        progress = cluster.api(f"/v1/dispatches/{dispatch}")["progress"]
    except OSError:
        # The scheduler that was asked has just been killed.
        return False
    return progress["scheduled"] > 0 and progress["scheduled"] == progress["finished"]


def fault(cluster: Cluster, rng: random.Random, number: int) -> tuple[str, int, int]:
    """What happened, and when it began and was over, microseconds."""
    at = time.monotonic_ns() // 1000
    worker: Worker = rng.choice(cluster.workers)
    match number % 4:
        case 0 | 2:
            cluster.kill(worker)
            cluster.add_worker()
            kind = "worker killed"
        case 1:
            os.kill(worker.pid, signal.SIGSTOP)
            time.sleep(FROZEN_S)
            os.kill(worker.pid, signal.SIGCONT)
            kind = "worker frozen"
        case _:
            leader = cluster.leader()
            if leader is not None:
                cluster.kill(leader)
                cluster.add_scheduler()
                until("nobody leads", lambda: cluster.leader() is not None)
            kind = "leader killed"
    return kind, at, time.monotonic_ns() // 1000


def short_port() -> int:
    """One of four digits: the list of all hosts must fit in one variable."""
    for port in range(7200, 10_000):
        with socket.socket() as listener:
            try:
                listener.bind(("0.0.0.0", port))
                return port
            except OSError:
                continue
    sys.exit("bench: no port of four digits is free")
