"""Processes of a benchmark: started, measured, ended with everything they have left behind."""

import os
import pathlib
import signal
import socket
import subprocess
import time

TICKS = os.sysconf("SC_CLK_TCK")
ROLES = {"dodo": "scheduler and S3", "dodo-worker": "workers", "redis-server": "Redis", "postgres": "Postgres", "nginx": "site (nginx)"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(command: list, work: pathlib.Path, output: object, **more: object) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that a signal of the terminal is ours to pass on, once; in `work`, by which
    [`leftovers`] knows it and what it starts."""
    return subprocess.Popen(
        [str(word) for word in command], stdout=output, stderr=output, stdin=subprocess.DEVNULL, cwd=work, start_new_session=True, **more
    )


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


def resident_mib(pid: int) -> float:
    return status_mib(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    return status_mib(pid, "VmHWM")


def status_mib(pid: int, field: str) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{field}:")) / 1024


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


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
    """Ends the children, the last one first; then what they may have left behind."""
    for child in reversed(children):
        if child.poll() is not None:
            continue
        # SIGINT drains ours and is Postgres' fast end; nginx drains on SIGQUIT.
        child.send_signal(signal.SIGQUIT if "nginx" in str(child.args[0]) else signal.SIGINT)
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
