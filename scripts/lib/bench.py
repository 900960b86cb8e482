"""Measures Dodo on this machine: called by scripts/bench, which builds it first."""

import argparse
import dataclasses
import json
import pathlib
import signal
import sys
import time

import bench_crawl
import bench_death
import bench_fleet
import bench_frontier
import bench_limit
import bench_memory
import bench_polite
import bench_rates
from bench_row import Row, table

# Name: (what measures it, whether it is run when nothing is said).
PARTS = {
    "crawl": (bench_crawl.crawl, True),
    "noop": (bench_rates.noop, True),
    "latency": (bench_rates.latency, True),
    "leader": (bench_death.leader, True),
    "wipe": (bench_death.wipe, True),
    "rolling": (bench_fleet.rolling, True),
    "kill": (bench_death.kill, False),
    "freeze": (bench_death.freeze, False),
    "deaths": (bench_fleet.false_deaths, False),
    "backlog": (bench_rates.backlog, False),
    "restarts": (bench_fleet.restarts, False),
    "frontier": (bench_frontier.frontier, False),
    "discovery": (bench_frontier.discovery, False),
    "limit": (bench_limit.limit, False),
    "tls": (bench_crawl.tls, False),
    "scale": (bench_crawl.scale, False),
    "memory": (bench_crawl.flat, False),
    "held": (bench_memory.held, False),
    "polite": (bench_polite.polite, False),
    "pace": (bench_polite.pace, False),
}
# Flag: (default, with --full).
SIZES = {
    "pages": (20_000, 20_000),
    "jobs": (100_000, 100_000),
    "workers": (2, 2),
    "kills": (50, 200),
    "minutes": (1, 60),
    "wiped": (100_000, 1_000_000),
    "backlog": (500_000, 10_000_000),
    "restarts": (100, 10_000),
    "hosts": (1000, 10_000),
    "web": (6000, 60_000),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures Dodo on this machine and prints one table.")
    short = ", ".join(name for name, (_, default) in PARTS.items() if default)
    parser.add_argument("--only", metavar="NAME[,NAME]", help=f"parts: {', '.join(PARTS)}, or all [default: {short}]")
    parser.add_argument("--full", action="store_true", help="every part at its full size: hours")
    for name, (default, full) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"[default: {default}; with --full {full}]")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--bin", required=True, type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--site", required=True, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, sizes in SIZES.items():
        if getattr(options, name) is None:
            setattr(options, name, sizes[options.full])
        if getattr(options, name) < 1:
            parser.error(f"--{name} is at least 1")
    options.parts = [name for name, (_, default) in PARTS.items() if default or options.full]
    if options.only:
        options.parts = list(PARTS) if options.only == "all" else options.only.split(",")
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    options.bin = options.bin.absolute()
    return options


def main() -> None:
    options = parse()
    # What it was started to ignore (nohup) stays ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    rows: list[Row] = []
    try:
        for name in options.parts:
            began = time.monotonic()
            rows += PARTS[name][0](options)
            print(f"bench: {name} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    except OSError as error:
        sys.exit(f"bench: {error}")
    finally:
        # What was measured before something went wrong is still worth knowing.
        if rows:
            print(json.dumps([dataclasses.asdict(row) for row in rows]) if options.json else table(rows))
    if any(row.met is False for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
