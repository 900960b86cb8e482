"""A web of many virtual hosts on addresses of loopback, and a server of it that notes every request.

Everything follows from a seed. Nothing here knows Dodo.

    python3 polite_web.py HOSTS PAGES DELAY_MS PORT LOG
"""

import asyncio
import dataclasses
import os
import random
import resource
import signal
import sys
import time

SEED = 1
# No host has more pages: the largest alone says how long a crawl takes.
HOST_PAGES_MAX = 1000
# The usual time to answer, seconds, and how far apart hosts lie: a lognormal distribution, cut off.
LATENCY_S, LATENCY_SIGMA, LATENCY_S_MAX = 0.02, 0.8, 0.2
# Hosts of one address, most of which have but one.
NEIGHBOURS = (1, 1, 1, 1, 1, 1, 2, 2, 3, 8)
RETRY_AFTER_S = 3
# Smaller hosts close each connection: it would lie idle at one worker while another asks next, and ten thousand hosts by
# sixteen workers are more than a process may have open.
KEEPING_PAGES_MIN = 50
# How often the log is written.
FLUSH_S = 0.5


@dataclasses.dataclass(slots=True)
class Host:
    name: str
    address: str
    pages: int
    latency_s: float
    # Requests that it takes at once.
    places: int
    delay_ms: int
    crawl_delay_s: int | None
    # Some of its pages are first refused, with Retry-After.
    refuses: bool

    def robots(self) -> str:
        delay = f"Crawl-delay: {self.crawl_delay_s}\n" if self.crawl_delay_s else ""
        return f"User-agent: *\nDisallow: /private/\n{delay}"

    def refused(self, page: int) -> bool:
        return self.refuses and page % 50 == 3

    def page(self, page: int) -> str:
        links = [child for child in (2 * page + 1, 2 * page + 2) if child < self.pages] + [page // 3]
        anchors = "".join(f'<a href="/{link}">page {link}</a> ' for link in links)
        return f'<!doctype html><title>{page} of {self.name}</title><p>{anchors}<a href="/private/{page}">no</a>'


def build(count: int, pages: int, delay_ms: int) -> list[Host]:
    """Hosts by size, the largest first: Zipf's law with the exponent 1, at least one page, some `pages` together."""
    low, high = 1.0, float(pages)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(sizes(count, middle)) < pages else (low, middle)
    rng = random.Random(SEED)
    # Who shares an address with whom has nothing to do with size.
    places: list[tuple[str, str, int]] = []
    number = 0
    while len(places) < count:
        address = f"127.{1 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"
        together = rng.choice(NEIGHBOURS)
        names = [f"h{number}"] if together == 1 else [f"{n}.h{number}" for n in range(together)]
        places += [(name, address, number) for name in names]
        number += 1
    del places[count:]
    rng.shuffle(places)
    hosts: list[Host] = []
    for rank, (size, (name, address, number)) in enumerate(zip(sizes(count, low), places)):
        latency = min(LATENCY_S_MAX, rng.lognormvariate(0, LATENCY_SIGMA) * LATENCY_S)
        two = number % 5 == 0
        # The largest set the pace of the whole: they ask for nothing more than the delay.
        slow = 2 * delay_ms // 1000 + 1 if rank >= 200 and rank % 20 == 0 else None
        refuses = not two and rank >= 20 and rank % 10 == 7
        hosts.append(Host(name, address, size, latency, 2 if two else 1, delay_ms, slow, refuses))
    return hosts


def sizes(count: int, first: float) -> list[int]:
    return [max(1, min(HOST_PAGES_MAX, round(first / rank))) for rank in range(1, count + 1)]


class Exchange(asyncio.Protocol):
    """A connection. Each request is answered when its host's latency has passed."""

    hosts: dict[str, Host] = {}
    asked: set[tuple[str, str]] = set()
    log: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.address = transport.get_extra_info("sockname")[0]
        self.received = b""
        self.waiting: dict[int, tuple[asyncio.TimerHandle, int, str, str]] = {}

    def data_received(self, received: bytes) -> None:
        at = time.monotonic_ns() // 1000
        self.received += received
        while b"\r\n\r\n" in self.received:
            head, _, self.received = self.received.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            path = first.split(" ")[1]
            name = next((line[5:].strip().lower() for line in lines if line[:5].lower() == "host:"), "")
            name = name.rpartition(":")[0] or name
            host = self.hosts.get(name)
            key = id(head) + at
            later = asyncio.get_running_loop().call_later(host.latency_s if host else 0, self.answer, key)
            self.waiting[key] = (later, at, name, path)

    def connection_lost(self, _: Exception | None) -> None:
        for later, at, name, path in self.waiting.values():
            later.cancel()
            self.note(at, name, path, 0)

    def answer(self, key: int) -> None:
        _, at, name, path = self.waiting.pop(key)
        host = self.hosts.get(name)
        status, more, body = 404, "", ""
        if host and host.address == self.address:
            page = int(path[1:]) if path[1:].isdigit() else host.pages
            if path == "/robots.txt":
                status, more, body = 200, "content-type: text/plain\r\n", host.robots()
            elif page < host.pages and host.refused(page) and (name, path) not in self.asked:
                status, more = 429, f"retry-after: {RETRY_AFTER_S}\r\n"
                self.asked.add((name, path))
            elif page < host.pages:
                status, more, body = 200, "content-type: text/html\r\n", host.page(page)
        self.note(at, name, path, status)
        closes = host is None or host.pages < KEEPING_PAGES_MIN
        more += "connection: close\r\n" * closes
        self.transport.write(f"HTTP/1.1 {status} X\r\n{more}content-length: {len(body)}\r\n\r\n{body}".encode())
        if closes:
            self.transport.close()

    def note(self, at: int, name: str, path: str, status: int) -> None:
        """Before the answer leaves, and after the request has come: what lies between only widens a gap."""
        self.log.append(f"{at} {time.monotonic_ns() // 1000} {self.address} {name} {path} {status}\n")


async def serve(port: int, place: str) -> None:
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    # A request that cannot be accepted would be noted too late.
    loop.set_exception_handler(lambda _, context: os._exit(1))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    await loop.create_server(Exchange, "0.0.0.0", port, backlog=4096)
    with open(place, "w", encoding="ascii") as log:
        while not over.is_set():
            await asyncio.wait([asyncio.ensure_future(over.wait())], timeout=FLUSH_S)
            log.writelines(Exchange.log)
            Exchange.log.clear()
            log.flush()


def main() -> None:
    count, pages, delay_ms, port = (int(word) for word in sys.argv[1:5])
    # Each host has connections of its own.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Exchange.hosts = {host.name: host for host in build(count, pages, delay_ms)}
    asyncio.run(serve(port, sys.argv[5]))


if __name__ == "__main__":
    main()
