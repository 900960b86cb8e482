"""The yardstick of this machine: the same crawl without Dodo, by its durable steps alone, and what single steps cost."""

import argparse
import os
import pathlib
import subprocess

from bench_crawl import within
from bench_frontier import bench
from bench_process import ROLES, cpu_seconds
from bench_row import Row
from bench_server import Postgres, Redis, await_port
from bench_site import generate, start_nginx

STEPS = {
    "scan_us": "links by a scan for href",
    "links_us": "the same, joined, hashed and looked up in a set",
    "worker_links_us": "links as a worker reads and spells them",
    "sha1_us": "SHA-1 of the body",
    "gzip_us": "record and its gzip member (level 1)",
    "worker_record_us": "record as a worker makes it, SHA-1 of the body included",
}


def limit(options: argparse.Namespace) -> list[Row]:
    """The crawl of `crawl`: the same site, fetched by links from its first page, appended, committed; archived or not."""
    site = pathlib.Path(options.site).absolute() / f"site-{options.pages}"
    generate(site, options.pages)
    # First: it builds, and servers that wait for it would use CPU meanwhile.
    costs = bench("limit", "steps", str(site))
    rows = within(lambda work, children: bare(options.pages, site, work, children, archived=False))
    rows += within(lambda work, children: bare(options.pages, site, work, children, archived=True))
    return rows + [Row("limit", f"us of CPU a page: {what}", f"{costs[name]:.1f}") for name, what in STEPS.items()]


def bare(pages: int, site: pathlib.Path, work: pathlib.Path, children: list[subprocess.Popen[bytes]], archived: bool) -> list[Row]:
    nginx, port = start_nginx(work, site)
    children.append(nginx)
    await_port(port, nginx, "nginx")
    redis = Redis(work)
    children.append(redis.process)
    postgres = Postgres(work)
    children.append(postgres.process)
    archive = work / "archive"
    archive.mkdir()
    roots = [child.pid for child in children]
    before = cpu_seconds(roots)
    more = [str(archive)] if archived else []
    found = bench("limit", "crawl", f"http://127.0.0.1:{port}/p0.html", str(pages), redis.url, postgres.url, *more)
    after = cpu_seconds(roots)
    cpu = {"the bare steps": found["cpu_s"]}
    cpu |= {ROLES[name]: after[name] - before.get(name, 0) for name in ("redis-server", "postgres", "nginx")}
    kind = "archived and verified too" if archived else f"{pages} pages fetched and committed by the bare steps"
    mark = ", archived" if archived else ""
    rows = [Row("limit", f"pages/s, {kind}", f"{pages / found['seconds']:.0f}")]
    if not archived:
        rows.append(Row("limit", "links stored", str(found["links"])))
        rows.append(Row("limit", "pages a commit, mean", f"{pages / found['commits']:.0f}"))
    rows += [Row("limit", f"CPU-s per 1000 pages{mark}: {name}", f"{seconds * 1000 / pages:.3f}") for name, seconds in cpu.items()]
    cores, all_s = os.cpu_count() or 1, sum(cpu.values())
    rows.append(Row("limit", f"CPU-s per 1000 pages{mark}: all", f"{all_s * 1000 / pages:.3f}"))
    # Whatever else ran meanwhile, and however slow the disk is.
    return [*rows, Row("limit", f"pages/s that the CPU of {cores} cores allows{mark}", f"{cores * pages / all_s:.0f}")]
