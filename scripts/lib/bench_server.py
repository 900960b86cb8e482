"""Private servers for a cluster whose every process a benchmark can kill: Redis, Postgres, and how to ask them."""

import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import sys
import time

from bench_process import free_port, start

READY_S = 60
# As `dodo up` sets its own (scheduler/src/local/postgres.rs), as far as it bears on speed and durability.
POSTGRES = {
    "listen_addresses": "'127.0.0.1'",
    "unix_socket_directories": "''",
    "max_connections": "500",
    "shared_buffers": "512MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_compression": "lz4",
    "max_wal_size": "2GB",
    "min_wal_size": "256MB",
    "checkpoint_timeout": "15min",
    "autovacuum_naptime": "10s",
    "autovacuum_vacuum_cost_limit": "2000",
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
    "default_statistics_target": "20",
    "jit": "off",
    "dynamic_shared_memory_type": "mmap",
    "max_parallel_workers_per_gather": "0",
    "random_page_cost": "1.1",
    "timezone": "'UTC'",
}


class Redis:
    """A server with an append-only file, packed and rewritten as `dodo up` has it (scheduler/src/local/redis.rs), and one
    connection to it."""

    def __init__(self, work: pathlib.Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        directory = work / "redis"
        directory.mkdir()
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        words = [program, "--port", self.port, "--bind", "127.0.0.1", "--dir", directory, "--appendonly", "yes", "--save", ""]
        words += ["--auto-aof-rewrite-min-size", "256mb", "--rdbcompression", "no"]
        self.process = start([*words, "--maxmemory-policy", "noeviction"], work, (work / "redis.log").open("wb"))
        await_port(self.port, self.process, "Redis")
        self.socket = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        self.lines = self.socket.makefile("rb")

    def __call__(self, *words: object) -> object:
        encoded = [str(word).encode() for word in words]
        self.socket.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
        answer = self._read()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _read(self) -> object:
        kind, rest = (line := self.lines.readline())[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.lines.read(int(rest) + 2)[:-2].decode(errors="replace")
        if kind == b"*":
            return None if rest == b"-1" else [self._read() for _ in range(int(rest))]
        if kind == b"-":
            return RuntimeError(rest.decode())
        return int(rest) if kind == b":" else rest.decode()

    def memory_mib(self) -> float:
        text = str(self("INFO", "memory"))
        return int(text.split("used_memory:")[1].split("\r\n")[0]) / (1 << 20)


class Postgres:
    """A server of its own, and one session that sees all tenants."""

    MARK = "-- answered --"

    def __init__(self, work: pathlib.Path) -> None:
        self.port = free_port()
        self.url = f"postgres://dodo@127.0.0.1:{self.port}/dodo"
        directory = work / "postgres"
        directory.mkdir()
        # It does not run as root.
        account: dict[str, object] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(directory, user.pw_uid, user.pw_gid)
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        binaries = newest_postgres()
        subprocess.run(
            [binaries / "initdb", "-D", directory / "data", "-U", "dodo", "--auth=trust", "--no-locale", "-E", "UTF8"],
            check=True, cwd=directory, stdout=subprocess.DEVNULL, **account,
        )
        settings = [word for name, value in POSTGRES.items() for word in ("-c", f"{name}={value.strip(chr(39))}")]
        command = [binaries / "postgres", "-D", directory / "data", "-p", self.port, *settings]
        self.process = start(command, directory, (work / "postgres.log").open("wb"), **account)
        self.psql = shutil.which("psql") or binaries / "psql"
        deadline = time.monotonic() + READY_S
        while subprocess.run(self._words("postgres", "-c", "CREATE DATABASE dodo"), capture_output=True).returncode != 0:
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit("bench: Postgres does not start")
            time.sleep(0.1)
        self.session: subprocess.Popen[str] | None = None

    def _words(self, database: str, *more: str) -> list[str]:
        return [str(self.psql), "-XqAtF\t", "-h", "127.0.0.1", "-p", str(self.port), "-U", "dodo", "-d", database, *more]

    def __call__(self, query: str) -> list[list[str]]:
        """The rows of a query, as text."""
        if self.session is None:
            self.session = subprocess.Popen(
                self._words("dodo"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
            )
            self("SET ROLE dodo_pipeline")
        assert self.session.stdin and self.session.stdout
        self.session.stdin.write(f"{query};\n\\echo '{self.MARK}'\n")
        self.session.stdin.flush()
        rows = []
        while (line := self.session.stdout.readline().rstrip("\n")) != self.MARK:
            if line.startswith(("ERROR", "FATAL", "psql:")):
                sys.exit(f"bench: Postgres: {line}")
            if not line and self.session.poll() is not None:
                sys.exit("bench: the session with Postgres has ended")
            rows.append(line.split("\t"))
        return rows

    def one(self, query: str) -> str:
        return self(query)[0][0]

    def close(self) -> None:
        if self.session is not None:
            self.session.kill()
            self.session.wait()


def newest_postgres() -> pathlib.Path:
    found = shutil.which("initdb")
    if found:
        return pathlib.Path(found).parent
    every = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if not every:
        sys.exit("bench: PostgreSQL is not installed")
    return every[-1].parent


def await_port(port: int, process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"bench: {what} does not start")
            time.sleep(0.02)
