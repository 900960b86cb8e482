"""The whole pipeline as `dodo up` runs it: a crawl of a generated site behind nginx."""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime

from bench_cluster import LIMIT_S, fetch
from bench_process import ROLES, cpu_seconds, free_port, memory, start, stop
from bench_row import Row
from bench_site import generate, start_nginx


def seconds_between(first: str, last: str) -> float:
    return (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds()


def poll(api: str, dispatch: str, up: subprocess.Popen[bytes], pause: float) -> Iterator[dict]:
    """The dispatch again and again; ends the program when nothing comes of it any more."""
    deadline = time.monotonic() + LIMIT_S
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


def wait_done(api: str, dispatch: str, up: subprocess.Popen[bytes]) -> tuple[dict, float]:
    """The finished dispatch, and when its last job had ended, seconds after its start."""
    fetched = 0.0
    for state in poll(api, dispatch, up, 0.1):
        progress = state["progress"]
        if not fetched and progress["scheduled"] and progress["scheduled"] == progress["finished"]:
            fetched = datetime.now().timestamp() - datetime.fromisoformat(state["created_at"]).timestamp()
        if state["state"] == "done":
            return state, fetched
    raise AssertionError("poll ends by itself only with the program")


def crawl(options: argparse.Namespace) -> list[Row]:
    work = pathlib.Path(tempfile.mkdtemp(prefix="dodo-bench-")).resolve()
    # Postgres runs as another user when we are root: it must be able to walk here.
    work.chmod(0o755)
    children: list[subprocess.Popen[bytes]] = []
    try:
        return run(options, work, children)
    finally:
        stop(children, work)
        shutil.rmtree(work, ignore_errors=True)


def run(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]]) -> list[Row]:
    site = pathlib.Path(options.site).absolute() / f"site-{options.pages}"
    generate(site, options.pages)
    nginx, site_port = start_nginx(work, site)
    children.append(nginx)
    port = free_port()
    api = f"http://127.0.0.1:{port}"
    log = (work / "up.log").open("wb")
    command = [options.bin / "dodo", "up", "--data", work / "data", "--workers", options.workers, "--port", port]
    command += ["--crawl", f"http://127.0.0.1:{site_port}/p0.html", "--delay", 0, "--host-concurrency", 256]
    up = start(command, work, log)
    children.append(up)
    roots = [up.pid, nginx.pid]
    dispatch = None
    for _ in range(600):
        try:
            dispatch = fetch(api, "/v1/dispatches")[0]["id"]
            break
        except (OSError, IndexError):
            if up.poll() is not None:
                break
            time.sleep(0.05)
    if dispatch is None:
        sys.exit(f"bench: dodo up does not answer: {(work / 'up.log').read_text()[-500:]}")
    # Servers have started and hardly anything is fetched: what they used so far is not the crawl's.
    before = cpu_seconds(roots)
    state, fetched = wait_done(api, dispatch, up)
    after = cpu_seconds(roots)
    progress = state["progress"]
    if progress["pages"] != options.pages or progress["failed"]:
        sys.exit(f"bench: {options.pages} pages were to be fetched: {progress}")
    status = fetch(api, "/v1/status")
    whole = seconds_between(state["created_at"], state["finished_at"])
    cpu = {name: (after.get(name, 0) - before.get(name, 0)) * 1000 / options.pages for name in ROLES}
    rows = [
        Row("crawl", f"pages/s, {options.pages} pages fetched and committed, {options.workers} workers", f"{options.pages / fetched:.0f}"),
        Row("crawl", "pages/s, archived and verified too", f"{options.pages / whole:.0f}"),
        Row("crawl", "links stored", str(progress["links"])),
        Row("crawl", "MB of bodies archived for each second of the crawl", f"{progress['bytes'] / 1e6 / whole:.1f}"),
        Row("crawl", "bodies' bytes to archived bytes (gzip level 1)", f"{progress['bytes'] / max(1, status['archive_bytes']):.2f}"),
    ]
    rows += [Row("crawl", f"CPU-s per 1000 pages: {role}", f"{cpu[name]:.3f}") for name, role in ROLES.items()]
    rows.append(Row("crawl", "CPU-s per 1000 pages: all", f"{sum(cpu.values()):.3f}"))
    return rows + memory_rows("crawl", roots)


def memory_rows(part: str, roots: list[int]) -> list[Row]:
    rows = []
    for name, now, most in memory(roots):
        role = ROLES.get(name, name)
        if most is None:
            rows.append(Row(part, f"MiB at the end, shared memory counted once: {role}", f"{now:.0f}"))
        else:
            rows.append(Row(part, f"MiB resident at the end (most): {role}", f"{now:.0f} ({most:.0f})"))
    return rows
