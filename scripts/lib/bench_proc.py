"""What scripts/bench reads of processes, from /proc: who they are, their CPU time and their memory."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    name: str
    # Tells a process from a later one with the same id.
    started: int
    # Its own CPU, and that of its ended children that it has waited for, in seconds.
    cpu: float
    children_cpu: float


@dataclass(frozen=True)
class Memory:
    pid: int
    name: str
    # Resident now and at most, and the part of it that counts memory shared by n processes as 1/n; MiB.
    rss: float
    peak: float
    pss: float


def read(pid: int) -> Process | None:
    """None: gone, or waits only to be reaped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold any character; proc(5) numbers the fields after it from 3.
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    cpu = (int(fields[11]) + int(fields[12])) / TICKS
    children_cpu = (int(fields[13]) + int(fields[14])) / TICKS
    return Process(pid, int(fields[1]), name, int(fields[19]), cpu, children_cpu)


def below(root: int) -> list[Process]:
    """Every process that descends from `root`, which is not among them."""
    found = [read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    by_parent: dict[int, list[Process]] = {}
    for process in found:
        if process is not None:
            by_parent.setdefault(process.parent, []).append(process)
    family: list[Process] = []
    generation = by_parent.get(root, [])
    while generation:
        family += generation
        generation = [child for process in generation for child in by_parent.get(process.pid, [])]
    return family


def cpu_by_name(root: int) -> dict[str, float]:
    """Backends of Postgres come and go: their parent's waited-for children count too."""
    total: dict[str, float] = {}
    for process in below(root):
        ended = process.children_cpu if process.name == "postgres" else 0
        total[process.name] = total.get(process.name, 0) + process.cpu + ended
    return total


def memory(root: int) -> list[Memory]:
    rows = [memory_of(process) for process in below(root)]
    return sorted((row for row in rows if row is not None), key=lambda row: (row.name, row.pid))


def memory_of(process: Process) -> Memory | None:
    try:
        status = values(process.pid, "status")
        rollup = values(process.pid, "smaps_rollup")
    except OSError:
        return None
    if "VmRSS" not in status:
        return None
    return Memory(process.pid, process.name, status["VmRSS"], status["VmHWM"], rollup["Pss"])


def values(pid: int, file: str) -> dict[str, float]:
    """The lines `Name:   123 kB`, in MiB."""
    lines = (line.split() for line in Path(f"/proc/{pid}/{file}").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) / 1024 for line in lines if line[-1] == "kB"}


def as_json(rows: list[Memory]) -> list[dict[str, object]]:
    return [asdict(row) for row in rows]
