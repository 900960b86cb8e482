"""The whole pipeline as `dodo up` runs it: a crawl of a generated site behind nginx."""

import argparse
import dataclasses
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

from bench_cluster import LIMIT_S, fetch
from bench_process import ROLES, cpu_seconds, family, free_port, memory, start, stop
from bench_row import Row, at_least, at_most
from bench_site import SlowSite, generate, make_certificate, start_nginx

T = TypeVar("T")
# The first rows of a crawl say how fast it was.
RATES = 2
TLS_PAGES, TLS_PAGE_BYTES = 4_000, 100_000
# Workers, and requests that each has under way at once, where nothing is to be waited for: so many are in a commit, or on
# their way to it and back. One worker uses both cores of a small machine; beside that, what two do as they are started.
CRAWL_WORKERS, DEFAULT_WORKERS = (1, 640), (2, 256)
CRAWL_CONCURRENCY = 1024
# Requests that a worker has under way at once, what each waits, and pages for each worker.
SCALE_PERMITS, SCALE_LATENCY_S, SCALE_PAGES = 16, 0.05, 6_000
# How often memory is looked at.
LASTING_PAUSE_S = 5


def seconds_between(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def poll(api: str, dispatch: str, up: subprocess.Popen[bytes], pause: float, until: float | None = None) -> Iterator[dict]:
    """The dispatch again and again; ends the program when nothing comes of it any more."""
    deadline = (until or time.monotonic()) + LIMIT_S
    while True:
        if up.poll() is not None:
            sys.exit(f"bench: dodo up has ended with {up.returncode}")
        try:
            state = fetch(api, f"/v1/dispatches/{dispatch}")
        except OSError as error:
            sys.exit(f"bench: dodo up does not answer any more: {error}")
        yield state
        if time.monotonic() > deadline:
            sys.exit(f"bench: dispatch {dispatch} was not done after {LIMIT_S} s: {state['progress']}")
        time.sleep(pause)


def wait_done(api: str, dispatch: str, up: subprocess.Popen[bytes]) -> dict:
    """The finished dispatch."""
    for state in poll(api, dispatch, up, 0.25):
        if state["state"] == "done":
            return state
    raise AssertionError("poll ends by itself only with the program")


def last_end(api: str, dispatch: str) -> str:
    """When the last job of a dispatch ended, by its row: the progress follows half a second behind."""
    ends: list[str] = []
    after = ""
    while jobs := fetch(api, f"/v1/jobs?dispatch={dispatch}&limit=1000{after}"):
        ends += [job["finished_at"] for job in jobs]
        after = f"&after={jobs[-1]['id']}"
    return max(ends, key=datetime.fromisoformat)


def crawl(options: argparse.Namespace) -> list[Row]:
    """The site behind plain HTTP: what a page costs all of them together."""
    rows = within(lambda work, children: plain(options, work, children, *CRAWL_WORKERS))
    time.sleep(1)
    beside = within(lambda work, children: plain(options, work, children, *DEFAULT_WORKERS))
    return rows + beside[:RATES] + [row for row in beside if row.what.startswith("MiB") and row.what.endswith(" workers")]


def tls(options: argparse.Namespace) -> list[Row]:
    """Pages of 100 KB behind TLS."""
    return within(lambda work, children: secured(options, work, children))


def flat(options: argparse.Namespace) -> list[Row]:
    """A crawl that goes on and on: what it keeps in memory must not grow."""
    return within(lambda work, children: lasting(options, work, children))


def scale(options: argparse.Namespace) -> list[Row]:
    """A site whose answers take their time: four workers against one. A worker holds few jobs at once, so that what is
    measured is how they share a crawl, and not what this machine can do."""
    rates = []
    for workers in (1, 4):
        rates.append(within(lambda work, children: waiting(options, work, children, workers)))
        time.sleep(1)
    one, four = rates
    what = f"1 worker {one:.0f} pages/s, 4 workers {four:.0f}, each with {SCALE_PERMITS} requests at once of {SCALE_LATENCY_S * 1000:.0f} ms: share of four times"
    return [at_least("scale", what, four / one / 4, 0.9, "", 2)]


def within(measure: Callable[[pathlib.Path, list[subprocess.Popen[bytes]]], T]) -> T:
    """Measures in a directory that is gone afterwards, with everything that was started in it."""
    work = pathlib.Path(tempfile.mkdtemp(prefix="dodo-bench-")).resolve()
    # Postgres runs as another user when we are root: it must be able to walk here.
    work.chmod(0o755)
    children: list[subprocess.Popen[bytes]] = []
    try:
        return measure(work, children)
    finally:
        stop(children, work)
        shutil.rmtree(work, ignore_errors=True)


@dataclasses.dataclass
class Crawled:
    api: str
    up: subprocess.Popen[bytes]
    state: dict
    # Until the last job had ended, and until everything was archived and verified.
    fetched_s: float
    whole_s: float
    cpu_s: dict[str, float]


def begin(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]], seed: str, **more: object) -> tuple[str, subprocess.Popen[bytes], str]:
    """Has a cluster of `dodo up`, once its workers are there, crawl the site of `seed`: its API, itself, the dispatch.
    `workers`, `concurrency`, `flags` and `environment` say how."""
    port, workers = free_port(), more.get("workers", options.workers)
    api = f"http://127.0.0.1:{port}"
    log = (work / "up.log").open("wb")
    command = [options.bin / "dodo", "up", "--data", work / "data", "--workers", workers, "--port", port]
    opened = {"DODO_OPEN": urllib.parse.urlsplit(seed).netloc}
    up = start(command, work, log, env={**os.environ, **opened, **more.get("environment", {})})
    children.append(up)
    for _ in range(600):
        try:
            if sum(fetch(api, "/v1/status")["workers"].values()) == int(workers):
                break
        except OSError:
            if up.poll() is not None:
                break
        time.sleep(0.05)
    else:
        sys.exit(f"bench: dodo up has not {workers} workers: {(work / 'up.log').read_text()[-500:]}")
    if up.poll() is not None:
        sys.exit(f"bench: dodo up has ended: {(work / 'up.log').read_text()[-500:]}")
    crawl = [options.bin / "dodo", "crawl", seed, "--api", api, "--delay", 0, "--host-concurrency", more.get("concurrency", 512)]
    subprocess.run([str(word) for word in [*crawl, *more.get("flags", [])]], check=True, stdout=subprocess.DEVNULL)
    return api, up, fetch(api, "/v1/dispatches")[0]["id"]


def run(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]], seed: str, pages: int, **more: object) -> Crawled:
    """Crawls the site of `seed`, as [`begin`] does, to its end."""
    api, up, dispatch = begin(options, work, children, seed, **more)
    roots = [child.pid for child in children]
    # Servers have started and hardly anything is fetched: what they used so far is not the crawl's.
    before = cpu_seconds(roots)
    state = wait_done(api, dispatch, up)
    after = cpu_seconds(roots)
    fetched_s = seconds_between(state["created_at"], last_end(api, dispatch))
    if state["progress"]["pages"] != pages or state["progress"]["failed"]:
        sys.exit(f"bench: {pages} pages were to be fetched: {state['progress']}")
    cpu_s = {name: after.get(name, 0) - before.get(name, 0) for name in ROLES}
    return Crawled(api, up, state, fetched_s, seconds_between(state["created_at"], state["finished_at"]), cpu_s)


def serve(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]]) -> tuple[subprocess.Popen[bytes], str]:
    """The site over plain HTTP: its server and its first page."""
    site = pathlib.Path(options.site).absolute() / f"site-{options.pages}"
    generate(site, options.pages)
    nginx, port = start_nginx(work, site)
    children.append(nginx)
    return nginx, f"http://127.0.0.1:{port}/p0.html"


def plain(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]], workers: int, permits: int) -> list[Row]:
    nginx, seed = serve(options, work, children)
    environment = {"DODO_WORKER_PERMITS": str(permits)}
    done = run(options, work, children, seed, options.pages, workers=workers, concurrency=CRAWL_CONCURRENCY, environment=environment)
    progress = done.state["progress"]
    status = fetch(done.api, "/v1/status")
    cpu = {name: seconds * 1000 / options.pages for name, seconds in done.cpu_s.items()}
    rows = [
        at_least("crawl", f"pages/s, {options.pages} pages fetched and committed, {workers} workers of {permits}", options.pages / done.fetched_s, 5000, ""),
        at_least("crawl", f"pages/s, archived and verified too, {workers} workers of {permits}", options.pages / done.whole_s, 5000, ""),
        Row("crawl", "links stored", str(progress["links"])),
        Row("crawl", "MB of bodies archived for each second of the crawl", f"{progress['bytes'] / 1e6 / done.whole_s:.1f}"),
        Row("crawl", "bodies' bytes to archived bytes (gzip level 1)", f"{progress['bytes'] / max(1, status['archive_bytes']):.2f}"),
    ]
    rows += [Row("crawl", f"CPU-s per 1000 pages: {role}", f"{cpu[name]:.3f}") for name, role in ROLES.items()]
    rows.append(Row("crawl", "CPU-s per 1000 pages: all", f"{sum(cpu.values()):.3f}"))
    return rows + memory_rows("crawl", [done.up.pid, nginx.pid])


def lasting(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]]) -> list[Row]:
    _, seed = serve(options, work, children)
    flags = ["--revisit-min", "20s", "--revisit-max", "40s"]
    api, up, dispatch = begin(options, work, children, seed, flags=flags)
    samples: list[dict[str, float]] = []
    workers = {pid for pid, name in family([up.pid]).items() if name == "dodo-worker"}
    deadline = time.monotonic() + options.minutes * 60
    for state in poll(api, dispatch, up, LASTING_PAUSE_S, deadline):
        sums: dict[str, float] = {}
        for name, now, _ in memory([up.pid]):
            sums[name] = sums.get(name, 0) + now
        samples.append(sums)
        if time.monotonic() > deadline:
            break
    # The first sixth is for what is filled once: buffers, pools, the window.
    sixth = max(1, len(samples) // 6)
    progress = state["progress"]
    if progress["revisits"] < options.pages or progress["failed"]:
        sys.exit(f"bench: each page was to be visited again: {progress}")
    if workers - family([up.pid]).keys():
        sys.exit("bench: a worker has ended, and its memory with it")
    rows = [Row("memory", f"visits to {options.pages} pages in {options.minutes} minutes", str(progress["finished"]))]
    for name, role in ROLES.items():
        early, late = (statistics.mean(sample.get(name, 0) for sample in part) for part in (samples[sixth : 2 * sixth], samples[-sixth:]))
        if name in ("dodo", "dodo-worker") and early:
            rows.append(at_most("memory", f"MiB of {role}: {early:.0f} in the second sixth, {late:.0f} in the last; growth", (late / early - 1) * 100, 10, "%", 1))
        elif early:
            rows.append(Row("memory", f"MiB of {role}: in the second sixth, in the last", f"{early:.0f}, {late:.0f}"))
    return rows


def secured(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]]) -> list[Row]:
    site = pathlib.Path(options.site).absolute() / f"site-{TLS_PAGES}-large"
    generate(site, TLS_PAGES, TLS_PAGE_BYTES)
    certificate, key = make_certificate(work)
    nginx, site_port = start_nginx(work, site, (certificate, key))
    children.append(nginx)
    environment = {"DODO_FETCH_CA_FILE": str(certificate)}
    done = run(options, work, children, f"https://127.0.0.1:{site_port}/p0.html", TLS_PAGES, environment=environment)
    rate = TLS_PAGES / done.fetched_s
    cores = os.cpu_count() or 1
    return [
        Row("tls", f"pages/s, {TLS_PAGES} pages of {TLS_PAGE_BYTES // 1000} KB fetched and committed, {options.workers} workers", f"{rate:.0f}"),
        at_least("tls", f"the same for each of {cores} cores, the site's and the servers' work included", rate / cores, 600, ""),
        at_least("tls", "pages for each CPU-second of the workers", TLS_PAGES / done.cpu_s["dodo-worker"], 600, ""),
    ]


def waiting(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]], workers: int) -> float:
    pages = SCALE_PAGES * workers
    site = SlowSite(SCALE_LATENCY_S, pages)
    environment = {"DODO_WORKER_PERMITS": str(SCALE_PERMITS)}
    done = run(options, work, children, site.url("/0"), pages, workers=workers, concurrency=1024, environment=environment)
    return pages / done.fetched_s


def memory_rows(part: str, roots: list[int]) -> list[Row]:
    rows = []
    for name, now, most in memory(roots):
        role = ROLES.get(name, name)
        if most is None:
            rows.append(Row(part, f"MiB at the end, shared memory counted once: {role}", f"{now:.0f}"))
        else:
            rows.append(Row(part, f"MiB resident at the end (most): {role}", f"{now:.0f} ({most:.0f})"))
    return rows
