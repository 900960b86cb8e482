"""Measures Dodo on this machine: called by scripts/bench, which builds it first."""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import bench_proc as proc
import bench_site as site

LIMIT_S = 900.0
# Without any progress for this long it stalls, and why is worth more than the rest of the limit.
STALL_S = 60.0
STOP_S = 60.0
ROLES = {
    "dodo": "scheduler and S3",
    "dodo-worker": "worker",
    "redis-server": "Redis",
    "postgres": "Postgres",
    "nginx": "site (nginx)",
}


def fail(why: str) -> NoReturn:
    sys.exit(f"bench: {why}")


class Cluster:
    """A `dodo up` that crawls the site, and its API."""

    def __init__(self, options: argparse.Namespace, work: Path, seed: str) -> None:
        port = site.free_port()
        self.api = f"http://127.0.0.1:{port}"
        self.data = work / "data"
        self.log = work / "up.log"
        self.binary = f"{options.bin}/dodo"
        command = [self.binary, "up", "--data", str(self.data), "--workers", str(options.workers)]
        command += ["--port", str(port), "--crawl", seed, "--delay", "0", "--host-concurrency", "64"]
        with self.log.open("wb") as log:
            # A session of its own: a Ctrl-C at the terminal would reach it beside our own signal, and a second
            # signal makes it leave without draining.
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def first_dispatch(self) -> str:
        """The crawl's, as soon as the API answers and knows it."""
        start = time.monotonic()
        while self.process.poll() is None and time.monotonic() - start < 120:
            try:
                if found := self.ask("/v1/dispatches"):
                    return str(found[0]["id"])
            except OSError:
                pass
            time.sleep(0.05)
        fail(f"dodo up does not crawl: {self.log.read_text()[-500:]}")

    def done(self, dispatch: str) -> dict[str, Any]:
        """Waits until a dispatch is done."""
        start = moved = time.monotonic()
        last: object = None
        while True:
            state: dict[str, Any] = self.ask(f"/v1/dispatches/{dispatch}")
            if state["state"] == "done":
                return state
            now = time.monotonic()
            if state["progress"] != last:
                last, moved = state["progress"], now
            if self.process.poll() is not None or now - moved > STALL_S or now - start > LIMIT_S:
                fail(f"after {now - start:.0f} s dispatch {dispatch} is {state['state']}, not done: {last}")
            time.sleep(0.1)

    def finished_jobs(self, dispatch: str) -> list[dict[str, Any]]:
        """What the log holds of a dispatch's fetched pages."""
        rows: list[dict[str, Any]] = []
        after = ""
        while batch := self.ask(f"/v1/export/pages?dispatch={dispatch}{after}"):
            rows += batch
            after = f"&after={batch[-1]['id']}"
        return rows

    def archive_bytes(self) -> int:
        """Of the objects themselves, without indexes and sidecars."""
        command = [self.binary, "archive", "list", "pages", "--data", str(self.data), "--json"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return sum(json.loads(line)["bytes"] for line in out.splitlines())

    def log_lines(self) -> list[str]:
        files = sorted((self.data / "log").rglob("*.log"))
        return [line for file in files for line in file.read_text(errors="replace").splitlines()]


def when(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def check(options: argparse.Namespace, port: int, state: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
    """Each page once, with each of its links: by the counters and by the log itself."""
    progress = state["progress"]
    wanted = {"pages": options.pages, "links": options.pages * site.LINKS, "failed": 0, "skipped": 0, "raw": 0}
    wrong = {name: progress[name] for name, count in wanted.items() if progress[name] != count}
    if options.pages < 2 * site.LINKS:
        # So few pages hold links to the same page, which count once.
        wrong.pop("links", None)
    if wrong:
        fail(f"the counters say {wrong}, and not {({name: wanted[name] for name in wrong})}")
    fetched = [job["url"] for job in jobs if job["state"] == "ok"]
    urls = {site.url(port, page) for page in range(options.pages)}
    if len(fetched) != options.pages or set(fetched) != urls:
        fail(f"the log has {len(fetched)} pages, {len(urls - set(fetched))} of {options.pages} are missing in it")


def measure_crawl(options: argparse.Namespace, cluster: Cluster, port: int) -> dict[str, Any]:
    dispatch = cluster.first_dispatch()
    # Servers have started and hardly anything is fetched: what they used so far is not the crawl's.
    before = proc.cpu_by_name(os.getpid())
    state = cluster.done(dispatch)
    after = proc.cpu_by_name(os.getpid())
    jobs = cluster.finished_jobs(dispatch)
    check(options, port, state, jobs)
    created = when(state["created_at"])
    ends = sorted(when(job["finished_at"]) for job in jobs)
    fetched_s, archived_s = ends[-1] - created, when(state["finished_at"]) - created
    body_bytes = state["progress"]["bytes"]
    return {
        "pages": options.pages,
        "links": state["progress"]["links"],
        "body_mb": body_bytes / 1e6,
        "seconds_to_first_page": ends[0] - created,
        "seconds_to_last_page": fetched_s,
        "seconds_to_archived": archived_s,
        "pages_per_s_to_last_page": options.pages / fetched_s,
        "pages_per_s_to_archived": options.pages / archived_s,
        **archive(cluster, body_bytes / options.pages, body_bytes),
        "cpu_s_per_1000_pages": per_1000(before, after, options.pages),
        "memory_after_crawl_mib": proc.as_json(proc.memory(os.getpid())),
    }


def archive(cluster: Cluster, page_bytes: float, body_bytes: int) -> dict[str, Any]:
    """The archiver logs each segment when it is verified. When it began the first one it does not say, so the rate is
    that of the others; it cannot exceed that of the crawl, which it follows."""
    line = re.compile(r"^(\S+)\s.*archived summary=Summary \{ segments: \d+, entries: (\d+)")
    found = [match for match in map(line.match, cluster.log_lines()) if match]
    ends = sorted((when(match[1]), int(match[2])) for match in found if int(match[2]))
    archived = cluster.archive_bytes()
    seconds = ends[-1][0] - ends[0][0] if ends else 0.0
    entries = sum(count for _, count in ends[1:])
    return {
        "archive_segments": len(ends),
        "archive_mb": archived / 1e6,
        "archive_ratio": body_bytes / archived,
        "archive_body_mb_per_s": entries * page_bytes / 1e6 / seconds if seconds else None,
    }


def measure_noops(options: argparse.Namespace, cluster: Cluster) -> dict[str, Any]:
    before = proc.cpu_by_name(os.getpid())
    start = time.time()
    dispatch = cluster.ask("/v1/noops", {"count": options.jobs})["dispatch"]
    accepted_s = time.time() - start
    state = cluster.done(dispatch)
    seconds = when(state["finished_at"]) - start
    after = proc.cpu_by_name(os.getpid())
    progress = state["progress"]
    if progress["finished"] != options.jobs or progress["failed"]:
        fail(f"{options.jobs} no-op jobs were to be done: {progress}")
    return {
        "noop_jobs": options.jobs,
        "noop_seconds_to_accepted": accepted_s,
        "noop_seconds": seconds,
        "noop_jobs_per_s": options.jobs / seconds,
        "cpu_s_per_1000_noops": per_1000(before, after, options.jobs),
    }


def per_1000(before: dict[str, float], after: dict[str, float], count: int) -> dict[str, float]:
    return {name: (after.get(name, 0) - before.get(name, 0)) * 1000 / count for name in ROLES}


def run(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    pages_dir = Path(options.cache).absolute() / f"site-{options.pages}"
    site.generate(pages_dir, options.pages)
    _, port = site.start_nginx(work, pages_dir)
    load = os.getloadavg()[0]
    cluster = Cluster(options, work, site.url(port, 0))
    result = {"cores": os.cpu_count(), "workers": options.workers, "load_before": load}
    result |= measure_crawl(options, cluster, port)
    result |= measure_noops(options, cluster)
    result["memory_at_end_mib"] = proc.as_json(proc.memory(os.getpid()))
    wrong = [line for line in cluster.log_lines() if re.match(r"\S+\s+(WARN|ERROR)\s", line)]
    result["warnings_logged"] = len(wrong)
    for line in wrong[:10]:
        print(f"bench: logged: {line}", file=sys.stderr)
    return result


def table(r: dict[str, Any]) -> str:
    rate = r["archive_body_mb_per_s"]
    rows = [
        (f"pages/s, {r['pages']} pages: submitted to the last one committed", f"{r['pages_per_s_to_last_page']:.0f}"),
        ("pages/s: submitted to all archived and verified", f"{r['pages_per_s_to_archived']:.0f}"),
        ("seconds to first page, last page, archived", seconds(r)),
        ("links stored", str(r["links"])),
        (f"archive: MB/s of bodies in, {r['archive_segments']} segments", f"{rate:.1f}" if rate else "-"),
        ("archive: MB in, MB archived, ratio", f"{r['body_mb']:.1f}, {r['archive_mb']:.1f}, {r['archive_ratio']:.2f}"),
        (f"no-op jobs/s, {r['noop_jobs']} jobs: request to all committed", f"{r['noop_jobs_per_s']:.0f}"),
    ]
    pages, noops = r["cpu_s_per_1000_pages"], r["cpu_s_per_1000_noops"]
    for name, role in ROLES.items():
        rows.append((f"CPU-s per 1000 pages, per 1000 no-ops: {role}", f"{pages[name]:.3f}, {noops[name]:.4f}"))
    total = f"{sum(pages.values()):.3f}, {sum(noops.values()):.4f}"
    rows.append(("CPU-s per 1000 pages, per 1000 no-ops: all", total))
    rows += memory_rows(r["memory_at_end_mib"])
    rows.append(("warnings and errors logged", str(r["warnings_logged"])))
    width = max(len(label) for label, _ in rows)
    head = f"{r['cores']} cores, load {r['load_before']:.1f} before; {r['workers']} workers"
    return "\n".join([head] + [f"{label:<{width}}  {value}" for label, value in rows])


def seconds(r: dict[str, Any]) -> str:
    return ", ".join(f"{r[f'seconds_to_{what}']:.2f}" for what in ("first_page", "last_page", "archived"))


def memory_rows(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Postgres' processes share most of theirs: their RSS cannot be summed, PSS can. JSON has each."""
    backends = [row for row in rows if row["name"] == "postgres"]
    out = [
        (f"MiB resident at the end (at most): {ROLES.get(row['name'], row['name'])}", f"{row['rss']:.0f} ({row['peak']:.0f})")
        for row in rows
        if row["name"] != "postgres"
    ]
    largest = max((row["rss"] for row in backends), default=0)
    label = f"MiB at the end: Postgres, {len(backends)} processes: PSS in all, largest RSS"
    return out + [(label, f"{sum(row['pss'] for row in backends):.0f}, {largest:.0f}")]


def stop() -> None:
    """Ends every process below us: `dodo up` in order with its servers, then the rest, by force if need be."""
    started = proc.below(os.getpid())
    own = sorted((p for p in started if p.parent == os.getpid()), key=lambda p: p.name != "dodo")
    for process in own:
        try:
            os.kill(process.pid, signal.SIGTERM)
            wait_end(process.pid)
        except (ProcessLookupError, ChildProcessError):
            pass
    left = [p for p in started if (now := proc.read(p.pid)) is not None and now.started == p.started]
    for process in left:
        print(f"bench: {process.name} {process.pid} did not end and is killed", file=sys.stderr)
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def wait_end(pid: int) -> None:
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.05)


def keep_logs(work: Path, cache: Path) -> None:
    """Of a run that failed: its logs explain it, its data does not."""
    kept = cache / "failed"
    shutil.rmtree(kept, ignore_errors=True)
    for file in [*work.glob("*.log"), *work.glob("*.err"), *(work / "data").rglob("*.log")]:
        target = kept / file.relative_to(work)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    print(f"bench: its logs are in {kept}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures Dodo on this machine.")
    parser.add_argument("--pages", type=int, default=20_000, help="pages of the site [default: 20000]")
    parser.add_argument("--jobs", type=int, default=100_000, help="no-op jobs [default and at most: 100000]")
    parser.add_argument("--workers", type=int, default=2, help="worker processes [default: 2]")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--cache", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if min(options.pages, options.jobs, options.workers) < 1 or options.jobs > 100_000:
        parser.error("--pages, --jobs and --workers are at least 1, --jobs at most 100000")
    return options


def main() -> None:
    options = arguments()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    work = Path(tempfile.mkdtemp(prefix="dodo-bench-"))
    # Postgres runs as another user when we are root: it must be able to walk here.
    work.chmod(0o755)
    whole = False
    try:
        result = run(options, work)
        whole = True
    except (OSError, subprocess.CalledProcessError) as error:
        fail(f"{error}")
    finally:
        # A second Ctrl-C must not leave half of it running.
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        stop()
        if not whole:
            keep_logs(work, Path(options.cache).absolute())
        shutil.rmtree(work, ignore_errors=True)
    print(json.dumps(result) if options.json else table(result))


if __name__ == "__main__":
    main()
