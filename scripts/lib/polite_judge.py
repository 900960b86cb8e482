"""Whether a web was asked politely, and how fast for that: by its own log alone. Nothing here knows Dodo."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

from polite_web import RETRY_AFTER_S, Host

# Two clocks read one after the other; what lies between arrival and its note only widens a gap.
TOLERANCE_US = 2_000
# Requests a second above which the machine, and not politeness, may be what limits a crawl.
BOUND_S_MAX = 100


@dataclasses.dataclass(slots=True)
class Ask:
    start_us: int
    end_us: int
    address: str
    host: str
    path: str
    # 0: the connection was closed before the answer.
    status: int


def read(lines: Iterable[str]) -> list[Ask]:
    asks = []
    for line in lines:
        start, end, address, host, path, status = line.split()
        asks.append(Ask(int(start), int(end), address, host, path, int(status)))
    return sorted(asks, key=lambda ask: ask.start_us)


def delay_us(host: Host, ask: Ask) -> int:
    """Until robots.txt has been read nobody knows of its Crawl-delay."""
    crawl_delay_ms = (host.crawl_delay_s or 0) * 1000 if ask.path != "/robots.txt" else 0
    return 1000 * max(host.delay_ms, crawl_delay_ms)


def violations(hosts: dict[str, Host], asks: list[Ask], unheard: list[tuple[int, int]]) -> list[str]:
    """One line for each. `unheard` are the times, microseconds, in which whoever asked may have died before it could tell of
    an answer: a refusal that ended within one is known to nobody."""
    found = []
    by_host, by_address = defaultdict(list), defaultdict(list)
    for ask in asks:
        host = hosts.get(ask.host)
        if host is None or host.address != ask.address:
            found.append(f"nobody of this name is here: {brief(ask)}")
            continue
        if ask.path.startswith("/private"):
            found.append(f"forbidden: {brief(ask)}")
        by_host[ask.host].append(ask)
        by_address[ask.address].append(ask)
    for name, mine in by_host.items():
        read_at = next((ask.end_us for ask in mine if ask.path == "/robots.txt" and ask.status == 200), None)
        if read_at is None or any(ask.start_us < read_at for ask in mine if ask.path != "/robots.txt"):
            found.append(f"robots.txt was not read first: {brief(mine[0])}")
        found += too_soon(f"host {name}", mine, hosts)
        for refusal in (ask for ask in mine if ask.status == 429 and not any(a <= ask.end_us <= b for a, b in unheard)):
            until = refusal.end_us + RETRY_AFTER_S * 1_000_000 - TOLERANCE_US
            found += [f"not waited as asked for: {brief(ask)} after {brief(refusal)}" for ask in mine if refusal.end_us < ask.start_us < until]
    for address, mine in by_address.items():
        found += too_soon(f"address {address}", mine, hosts)
    return found


def too_soon(where: str, asks: list[Ask], hosts: dict[str, Host]) -> list[str]:
    """Each of the places of a host rests for the delay after a request: fewer requests than places are under way, or over for
    less than the delay, when one starts."""
    found = []
    busy: list[Ask] = []
    for ask in asks:
        host = hosts[ask.host]
        since = ask.start_us - delay_us(host, ask) + TOLERANCE_US
        near = [other for other in busy if other.end_us > since]
        if len(near) >= host.places:
            found.append(f"too many or too soon at {where}: {brief(ask)} after {[brief(other) for other in near]}")
        # Delays differ at an address: what is too old for this one may not be for the next.
        busy = [other for other in busy if other.end_us > ask.start_us - 10_000_000] + [ask]
    return found


@dataclasses.dataclass(slots=True)
class Clock:
    """An address, whose hosts take turns: how often it may be asked, and from when to when it was."""

    rate_s: float
    first_us: int
    last_us: int


def efficiency(hosts: dict[str, Host], asks: list[Ask]) -> tuple[float, float, float]:
    """Requests made to those that politeness allowed: of the whole, and from when on no more than `BOUND_S_MAX` a second were
    allowed; and how long that part took, seconds.

    An address with work left takes a request for each place each `delay + time to answer`, from the first request of all
    until its own last one. Whatever keeps it waiting beyond that counts against who asks: a machine that is too slow, too."""
    by_address = defaultdict(list)
    for ask in asks:
        by_address[ask.address].append(ask)
    begin = asks[0].start_us
    clocks = []
    for mine in by_address.values():
        # A refused host is asked again later: its wait is no place that rests.
        each_us = sum(ask.end_us - ask.start_us + delay_us(hosts[ask.host], ask) + (RETRY_AFTER_S * 1_000_000 if ask.status == 429 else 0) for ask in mine)
        clocks.append(Clock(hosts[mine[0].host].places * len(mine) / each_us * 1e6, begin, max(ask.end_us for ask in mine)))
    clocks.sort(key=lambda clock: clock.last_us)
    left = sum(clock.rate_s for clock in clocks)
    since = begin
    for clock in clocks:
        if left <= BOUND_S_MAX:
            break
        since = clock.last_us
        left -= clock.rate_s
    end = clocks[-1].last_us

    def share(from_us: int) -> float:
        allowed = sum(clock.rate_s * max(0, clock.last_us - max(from_us, clock.first_us)) / 1e6 for clock in clocks)
        return sum(ask.end_us > from_us for ask in asks) / allowed

    return share(begin), share(since), (end - since) / 1e6


def brief(ask: Ask) -> str:
    return f"{ask.host}{ask.path} at {ask.start_us / 1e6:.3f} for {(ask.end_us - ask.start_us) / 1000:.0f} ms ({ask.status})"
