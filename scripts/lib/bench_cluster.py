"""A cluster of separate processes, each of which can be killed: servers, schedulers and workers."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from bench_process import free_port, leftovers, start, stop
from bench_server import Postgres, Redis, await_port

LIMIT_S = 600
JOBS = "dodo:jobs:fetch"
KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench-secret"}
# No-op jobs of one request.
NOOPS_MAX = 100_000


@dataclasses.dataclass
class Scheduler:
    process: subprocess.Popen[bytes]
    api: str


@dataclasses.dataclass
class Worker:
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid


def fetch(api: str, path: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(api + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise OSError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error


def until(what: str, holds: Callable[[], object], limit_s: float = 60, pause_s: float = 0.01) -> float:
    """Asks again and again; returns when it held, by time.time()."""
    deadline = time.monotonic() + limit_s
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"bench: {what}: not within {limit_s:.0f} s")
        time.sleep(pause_s)
    return time.time()


class Cluster:
    """Use it with `with`: nothing is left running."""

    def __init__(self, binaries: pathlib.Path, workers: int, schedulers: int = 1, **env: object) -> None:
        self.binaries = binaries
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="dodo-bench-")).resolve()
        # Postgres runs as another user when we are root: it must be able to walk here.
        self.work.chmod(0o755)
        self.children: list[subprocess.Popen[bytes]] = []
        self.env = {**os.environ, **KEYS, **{name: str(value) for name, value in env.items()}}
        self.counts = (schedulers, workers)
        self.schedulers: list[Scheduler] = []
        self.workers: list[Worker] = []

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A second signal must not leave half of it running.
        kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for worker in self.workers:
            # One that was stopped would not hear of the end.
            worker.process.kill()
        if hasattr(self, "sql"):
            self.sql.close()
        stop(self.children, self.work)
        shutil.rmtree(self.work, ignore_errors=True)
        for number, handler in kept.items():
            signal.signal(number, handler)

    def _start(self) -> None:
        self.redis = Redis(self.work)
        self.children.append(self.redis.process)
        self.sql = Postgres(self.work)
        self.children.append(self.sql.process)
        port = free_port()
        self.env |= {
            "DODO_REDIS_URL": self.redis.url,
            "DODO_DATABASE_URL": self.sql.url,
            "DODO_S3_ENDPOINT": f"http://127.0.0.1:{port}",
            "DODO_S3_BUCKET": "dodo",
            "DODO_LOG_DIR": str(self.work / "log"),
        }
        s3 = self._child(["dodo", "s3", "--dir", self.work / "s3", "--listen", f"127.0.0.1:{port}"])
        await_port(port, s3, "the S3 endpoint")
        subprocess.run([self.binaries / "dodo", "migrate"], env=self.env, check=True, stdout=subprocess.DEVNULL)
        for _ in range(self.counts[0]):
            self.add_scheduler()
        until("no scheduler dispatches", lambda: self.leader() is not None)
        for _ in range(self.counts[1]):
            self.add_worker()
        self.await_workers()

    def _child(self, command: list) -> subprocess.Popen[bytes]:
        with (self.work / "output.log").open("ab") as output:
            child = start([self.binaries / command[0], *command[1:]], self.work, output, env=self.env)
        self.children = [known for known in self.children if known.poll() is None] + [child]
        return child

    def add_scheduler(self) -> Scheduler:
        port = free_port()
        scheduler = Scheduler(self._child(["dodo", "serve", "--listen", f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}")
        await_port(port, scheduler.process, "a scheduler")
        self.schedulers.append(scheduler)
        return scheduler

    def add_worker(self) -> Worker:
        worker = Worker(self._child(["dodo-worker"]))
        self.workers.append(worker)
        return worker

    def await_workers(self) -> None:
        """Until each has registered and the leader has seen its heart beat."""
        pids = {worker.pid for worker in self.workers}

        def ready() -> bool:
            views = self.api("/v1/workers")
            return pids <= {view["pid"] for view in views if view["state"] in ("ready", "busy")}

        until("the workers do not register", ready, pause_s=0.05)

    def kill(self, who: Worker | Scheduler, number: signal.Signals = signal.SIGKILL) -> float:
        """Sends a signal and forgets the process; returns when."""
        at = time.time()
        os.kill(who.process.pid, number)
        if number == signal.SIGKILL:
            who.process.wait()
        (self.workers if isinstance(who, Worker) else self.schedulers).remove(who)
        return at

    def leader(self) -> Scheduler | None:
        return next((known for known in self.schedulers if fetch(known.api, "/v1/status")["dispatching"]), None)

    def api(self, path: str, body: object = None) -> dict:
        return fetch(self.schedulers[0].api, path, body)

    def submit_noops(self, count: int) -> list[str]:
        """The dispatches of so many no-op jobs."""
        parts = [min(NOOPS_MAX, count - at) for at in range(0, count, NOOPS_MAX)]
        return [self.api("/v1/noops", {"count": part})["dispatch"] for part in parts]

    def crawl(self, urls: list[str], concurrency: int = 256) -> str:
        body = {"urls": urls, "delay_ms": 0, "host_concurrency": concurrency, "depth": 0}
        return self.api("/v1/crawls", body)["dispatch"]

    def finished(self, dispatches: list[str]) -> int:
        progress = [self.api(f"/v1/dispatches/{dispatch}")["progress"] for dispatch in dispatches]
        if any(each["failed"] for each in progress):
            sys.exit(f"bench: jobs have failed: {progress}")
        return sum(each["finished"] for each in progress)

    def await_finished(self, dispatches: list[str], count: int, limit_s: float = LIMIT_S) -> float:
        at = until(f"{count} jobs are not done", lambda: self.finished(dispatches) >= count, limit_s, 0.02)
        if self.finished(dispatches) != count:
            sys.exit(f"bench: {count} jobs were submitted, {self.finished(dispatches)} are counted")
        return at

    def held(self, worker: Worker) -> list[str]:
        """The jobs in the pending list of a worker, by id."""
        slot = self.sql.one(f"SELECT slot FROM worker WHERE pid = {worker.pid} ORDER BY registered_at DESC LIMIT 1")
        rows = self.redis("XPENDING", JOBS, "workers", "-", "+", 10_000, f"worker-{slot}")
        assert isinstance(rows, list)
        jobs = []
        for entry, *_ in rows:
            for _, fields in self.redis("XRANGE", JOBS, entry, entry):
                jobs.append(fields[fields.index("j") + 1])
        return jobs

    def log_lines(self) -> list[str]:
        """Everything that was logged, in the order in which it was."""
        files = (self.work / "log").rglob("*.log")
        return sorted(line for file in files for line in file.read_text(errors="replace").splitlines())

    def leftovers(self) -> list[int]:
        return leftovers(self.work)
