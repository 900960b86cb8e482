"""Measures Dodo on this machine: called by scripts/bench, which builds it first."""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from datetime import datetime

LINKS = 50
PAGE_BYTES = 20_000
LIMIT_S = 600
TICKS = os.sysconf("SC_CLK_TCK")
ROLES = {"dodo": "scheduler and S3", "dodo-worker": "workers", "redis-server": "Redis", "postgres": "Postgres", "nginx": "site (nginx)"}


def generate(site: pathlib.Path, pages: int) -> None:
    """Page n links to 2n+1 and 2n+2, so that every page is reachable, and to 48 others."""
    done = site / f"done-{pages}"
    if done.exists():
        return
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(2000)]
    for n in range(pages):
        targets = [(2 * n + 1) % pages, (2 * n + 2) % pages] + [rng.randrange(pages) for _ in range(LINKS - 2)]
        parts = [f'<!doctype html><html lang="en"><head><title>Page {n}</title></head><body>']
        room = PAGE_BYTES // LINKS - 45
        for to in targets:
            text = " ".join(rng.choices(words, k=room // 6))[:room]
            parts.append(f'<p>{text}</p><a href="/p{to}.html">link {to}</a>')
        (site / f"p{n}.html").write_text("\n".join(parts) + "</body></html>\n")
    done.touch()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_nginx(work: pathlib.Path, site: pathlib.Path) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    temp = "".join(f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = work / "nginx.conf"
    config.write_text(
        # As root nginx would read the files as another user, who may not be able to walk there.
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;"
        "events { worker_connections 2048; }"
        f"http {{ types {{ text/html html; }} access_log off; sendfile on; keepalive_requests 10000000; {temp}"
        f"server {{ listen 127.0.0.1:{port}; root {site}; }} }}"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return start([program, "-c", config, "-p", work], work, subprocess.DEVNULL), port


def start(command: list, work: pathlib.Path, output: object) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that a signal of the terminal is ours to pass on, once; in `work`, by which
    [`leftovers`] knows it and what it starts."""
    return subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=work, start_new_session=True)


def fetch(api: str, path: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(api + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def family(roots: list[int]) -> dict[int, str]:
    """Every process below the given ones: pid to name."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            name = stat[stat.index("(") + 1 : stat.rindex(")")]
            parents[int(entry.name)] = (int(stat[stat.rindex(")") + 2 :].split()[1]), name)
    found: dict[int, str] = {}
    for pid, (_, name) in parents.items():
        walk = pid
        while walk in parents:
            if walk in roots:
                found[pid] = name
                break
            walk = parents[walk][0]
    return found


def cpu_seconds(roots: list[int]) -> dict[str, float]:
    """CPU used by role, children that have ended included."""
    total: dict[str, float] = {}
    for pid, name in family(roots).items():
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        fields = stat[stat.rindex(")") + 2 :].split()
        # utime and stime; of Postgres' parent also cutime and cstime, since backends come and go.
        ticks = sum(int(fields[at]) for at in ((11, 12, 13, 14) if name == "postgres" else (11, 12)))
        total[name] = total.get(name, 0) + ticks / TICKS
    return total


def memory(roots: list[int]) -> list[tuple[str, float, float | None]]:
    """(name, resident now, resident at most) in MiB. Postgres' processes share most of theirs: they are one row, the sum
    of their proportional shares, which have no peak."""
    rows = []
    shares = 0
    for pid, name in sorted(family(roots).items()):
        try:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            rollup = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text() if name == "postgres" else ""
        except OSError:
            continue
        shares += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        values = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
        if name != "postgres" and "VmRSS" in values:
            rows.append((name, int(values["VmRSS"]) / 1024, int(values["VmHWM"]) / 1024))
    return rows + [("postgres", shares / 1024, None)]


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


def wait_noops(api: str, dispatch: str, up: subprocess.Popen[bytes], jobs: int) -> float:
    """When the last no-op job had ended, by the clock of [`time.monotonic`]."""
    for state in poll(api, dispatch, up, 0.05):
        progress = state["progress"]
        if progress["finished"] >= jobs:
            break
    ended = time.monotonic()
    if progress["failed"] or progress["finished"] != jobs:
        sys.exit(f"bench: {jobs} no-op jobs were to be done: {progress}")
    return ended


def run(options: argparse.Namespace, work: pathlib.Path, children: list[subprocess.Popen[bytes]]) -> dict:
    site = pathlib.Path(options.site).absolute() / f"site-{options.pages}"
    generate(site, options.pages)
    nginx, site_port = start_nginx(work, site)
    children.append(nginx)
    port = free_port()
    api = f"http://127.0.0.1:{port}"
    log = (work / "up.log").open("wb")
    command = [pathlib.Path(options.bin).absolute() / "dodo", "up", "--data", work / "data", "--workers", str(options.workers), "--port", str(port)]
    command += ["--crawl", f"http://127.0.0.1:{site_port}/p0.html", "--delay", "0", "--host-concurrency", "64"]
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
    result = {
        "pages": options.pages,
        "pages_per_s_fetched_and_committed": options.pages / fetched,
        "pages_per_s_archived_and_verified": options.pages / whole,
        "links": progress["links"],
        "archive_ratio": progress["bytes"] / max(1, status["archive_bytes"]),
        "archive_mb_per_s": progress["bytes"] / 1e6 / whole,
        "cpu_s_per_1000_pages": {
            name: (after.get(name, 0) - before.get(name, 0)) * 1000 / options.pages for name in ROLES
        },
        "memory_after_crawl_mib": memory(roots),
    }
    began = time.monotonic()
    dispatch = fetch(api, "/v1/noops", {"count": options.jobs})["dispatch"]
    result["noop_jobs"] = options.jobs
    result["noop_jobs_per_s"] = options.jobs / (wait_noops(api, dispatch, up, options.jobs) - began)
    result["memory_at_end_mib"] = memory(roots)
    return result


def table(result: dict, options: argparse.Namespace) -> str:
    cpu = result["cpu_s_per_1000_pages"]
    rows = [
        (f"pages/s, {result['pages']} pages fetched and committed", f"{result['pages_per_s_fetched_and_committed']:.0f}"),
        ("pages/s, archived and verified too", f"{result['pages_per_s_archived_and_verified']:.0f}"),
        ("links stored", str(result["links"])),
        ("archive: MB/s of bodies over the whole crawl, ratio", f"{result['archive_mb_per_s']:.1f}, {result['archive_ratio']:.2f}"),
        (f"no-op jobs/s, {result['noop_jobs']} submitted to committed", f"{result['noop_jobs_per_s']:.0f}"),
    ]
    rows += [(f"CPU-s per 1000 pages: {role}", f"{cpu[name]:.3f}") for name, role in ROLES.items()]
    rows.append(("CPU-s per 1000 pages: all", f"{sum(cpu.values()):.3f}"))
    for name, now, most in result["memory_at_end_mib"]:
        if most is None:
            rows.append((f"MiB at the end, shared memory counted once: {ROLES[name]}", f"{now:.0f}"))
        else:
            rows.append((f"MiB resident at the end (most): {ROLES.get(name, name)}", f"{now:.0f} ({most:.0f})"))
    width = max(len(label) for label, _ in rows)
    head = f"{os.cpu_count()} cores, {options.workers} workers, --delay 0 --host-concurrency 64"
    return "\n".join([head] + [f"{label:<{width}}  {value}" for label, value in rows])


def leftovers(work: pathlib.Path) -> list[int]:
    """Processes that live in `work`: whatever was started there and has outlived its parent."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                place = pathlib.Path(os.readlink(entry / "cwd"))
            except OSError:
                continue
            if place == work or work in place.parents:
                found.append(int(entry.name))
    return found


def stop(children: list[subprocess.Popen[bytes]], work: pathlib.Path) -> None:
    """Ends the children in order, the last one first; then what they may have left behind."""
    for child in reversed(children):
        child.send_signal(signal.SIGINT if child is not children[0] else signal.SIGQUIT)
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    # SIGQUIT is Postgres' quick end; what does not heed it in time is killed.
    for number in (signal.SIGQUIT, signal.SIGKILL):
        for pid in leftovers(work):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + 5
        while leftovers(work) and time.monotonic() < deadline:
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--pages", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--site", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.pages, options.jobs, options.workers) < 1 or options.jobs > 100_000:
        parser.error("--pages, --jobs and --workers are at least 1, --jobs at most 100000")
    # What it was started to ignore (nohup) stays ignored.
    stops = [number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    for number in stops:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    work = pathlib.Path(tempfile.mkdtemp(prefix="dodo-bench-")).resolve()
    # Postgres runs as another user when we are root: it must be able to walk here.
    work.chmod(0o755)
    children: list[subprocess.Popen[bytes]] = []
    try:
        result = run(options, work, children)
        print(json.dumps(result) if options.json else table(result, options))
    finally:
        # A second signal must not leave half of it running.
        for number in stops:
            signal.signal(number, signal.SIG_IGN)
        stop(children, work)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
