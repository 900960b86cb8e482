"""What parts cost alone: a pick the dispatcher, with few hosts and with very many, and links a worker."""

import argparse
import json
import pathlib
import subprocess
import sys

from bench_row import Row, at_least, at_most

ROOT = pathlib.Path(__file__).resolve().parents[2]
FEW, MANY = 20_000, 1_000_000
# What a scheduler holds at most (FLOWS_MAX); it leaves the rest in Postgres until there is room.
HELD = 200_000


def frontier(_: argparse.Namespace) -> list[Row]:
    """In a process of its own for each number of hosts, so that one's memory is not the other's."""
    few, many = measure(FEW), measure(MANY)
    rows = []
    for found in (few, many):
        what = f"{found['hosts']:,} hosts: a job brought in, picked and settled, mean"
        cost = found["add_us"] + found["pick_us"]
        bound = 25 if found is few else 2 * (few["add_us"] + few["pick_us"])
        rows.append(at_most("frontier", what, cost, round(bound, 1), "us", 1))
        rows.append(at_most("frontier", f"{found['hosts']:,} hosts: brought in, p99", found["add_p99_us"], 200, "us", 1))
    held = measure(HELD)
    what = f"memory of the {HELD:,} hosts that are held at most, each with an address of its own"
    rows.append(at_most("frontier", what, held["memory_mib"], 300, "MiB"))
    return rows


def discovery(_: argparse.Namespace) -> list[Row]:
    found = bench("discovery")
    what = "links/s on one core: pages of 20 KB parsed, links spelt canonically and looked up in the seen-set"
    return [at_least("discovery", what, found["links_per_s"], 400_000, "")]


def measure(hosts: int) -> dict[str, float]:
    return bench("frontier", str(hosts))


def bench(name: str, *arguments: str) -> dict[str, float]:
    command = ["cargo", "bench", "--workspace", "--quiet", "--bench", name, "--", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"bench: {' '.join(command)} ended with {done.returncode}")
    return json.loads(done.stdout)
