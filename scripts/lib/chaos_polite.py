"""Whether the sites were asked as politely as was declared, by their own log alone."""

from collections import defaultdict

from chaos_sites import Api

# Two clocks of one machine read one after the other; the site stamps an answer before it leaves and a request after it
# has come, so that every other difference only widens a gap.
TOLERANCE_US = 2_000
# Above every delay that is drawn.
DELAY_MS_MAX = 10_000


def check(world, found):
    limits = {}
    for work in world.works:
        hosts = [work["source"]["host"]] if work["source"] else []
        if work["kind"] == "crawl":
            # Every host that the seeds lead to belongs to the same crawl.
            seeds = {url.split("/")[2] for url in work["seeds"]}
            hosts = seeds.union(*(world.hosts[host].next for host in seeds))
        for host in hosts:
            limits[host] = (work["delay_ms"], work["concurrency"])
    by_host, by_address = defaultdict(list), defaultdict(list)
    for ask in world.asked:
        host = world.hosts.get(ask["host"])
        if host is None or ask["status"] == 421 or ask["host"] not in limits:
            found.bad("a host was asked that nobody knows", f"{ask}")
            continue
        if ask["path"].startswith("/private"):
            found.bad("a forbidden page was asked for", f"{ask}")
        by_host[ask["host"]].append(ask)
        by_address[ask["address"]].append(ask)
    for name, asks in by_host.items():
        asks.sort(key=lambda ask: ask["start_us"])
        if not isinstance(world.hosts[name], Api) and asks[0]["path"] != "/robots.txt":
            found.bad("robots.txt was not read first", f"{asks[0]}")
        judge("host", name, asks, world, limits, found)
    for address, asks in by_address.items():
        asks.sort(key=lambda ask: ask["start_us"])
        judge("address", address, asks, world, limits, found)


def judge(what, name, asks, world, limits, found):
    """`asks` in the order of their starts. With `concurrency` places, each of which rests for the delay after a request,
    fewer than that many others may be under way or just over when one starts. With one place that is: the last one has
    been over for the delay. Where limits differ at one address, who was allowed last decides, and that is not seen from
    here: the widest of those concerned counts."""
    busy = []
    for ask in asks:
        delay_ms, concurrency = limits[ask["host"]]
        if ask["path"] != "/robots.txt":
            delay_ms = max(delay_ms, getattr(world.hosts[ask["host"]], "crawl_delay_ms", None) or 0)
        since_us = ask["start_us"] - delay_ms * 1000 + TOLERANCE_US
        # Delays differ at an address: what is too old for the longest is forgotten.
        busy = [other for other in busy if other["end_us"] > ask["start_us"] - DELAY_MS_MAX * 1000]
        near = [other for other in busy if other["end_us"] > since_us]
        concurrency = max([concurrency, *(limits[other["host"]][1] for other in near)])
        if len(near) >= concurrency:
            found.bad(
                f"too many or too soon at one {what}",
                f"{name}: {brief(ask)} after {[brief(other) for other in near]}; {concurrency} at once, {delay_ms} ms apart",
            )
        busy.append(ask)


def brief(ask):
    seconds = ask["start_us"] / 1e6
    lasted = (ask["end_us"] - ask["start_us"]) / 1000
    return f"{ask['host']}{ask['path']} at {seconds:.3f} for {lasted:.0f} ms ({ask['status']})"
