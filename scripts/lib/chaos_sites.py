"""What the sites and APIs of the fault campaign serve, said a second time: scheduler/tests/chaos/site.rs is the first.

Everything follows from seeds; nothing here knows Dodo.
"""

import hashlib


def die(seed, *parts):
    text = "/".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Site:
    def __init__(self, host, spec):
        self.host, self.seed, self.pages = host, spec["seed"], spec["pages"]
        self.crawl_delay_ms, self.next = spec["crawl_delay_ms"], spec["next"]

    def kind(self, path):
        """What becomes of a page at last: ok, dead, missing, redirect or private."""
        name = path.lstrip("/")
        if path.startswith("/private"):
            return "private"
        if not name.isdigit() or int(name) >= self.pages:
            return "missing"
        n = int(name)
        if n == 0:
            return "ok"
        roll = die(self.seed, "kind", n) % 100
        if roll <= 1:
            return "dead"
        if 11 <= roll <= 13:
            return "missing"
        return "redirect" if 14 <= roll <= 17 else "ok"

    def redirects_to(self, path):
        return f"http://{self.host}/{(int(path.lstrip('/')) * 7 + 3) % self.pages}"

    def links(self, path):
        n, seed = int(path.lstrip("/")), self.seed
        links = [
            f"http://{self.host}/{child}"
            for child in (2 * n + 1, 2 * n + 2)
            if child < self.pages and die(seed, "omit", child) % 10 != 0
        ]
        for extra in range(die(seed, "extra", n) % 3):
            links.append(f"http://{self.host}/{die(seed, 'to', n, extra) % self.pages}")
        if die(seed, "private", n) % 4 == 0:
            links.append(f"http://{self.host}/private/{n}")
        if self.next and die(seed, "cross", n) % 5 == 0:
            links.append(f"http://{self.next[die(seed, 'where', n) % len(self.next)]}/0")
        return list(dict.fromkeys(links))

    def body(self, path):
        n, seed = int(path.lstrip("/")), self.seed
        filler = "".join(f"{die(seed, 'filler', n, part):016x} " for part in range(die(seed, "size", n) % 40))
        links = "".join(f'<a href="{link}">x</a>\n' for link in self.links(path))
        return (
            f"<!doctype html><html lang=en><title>page {n} of {self.host}</title>\n<p>{filler}</p>\n{links}</html>\n"
        ).encode()


class Api:
    def __init__(self, host, spec):
        self.host, self.seed, self.items = host, spec["seed"], spec["items"]

    def item(self, n):
        return {
            "id": f"i-{n}",
            "by": {"name": f"author {n % 7}"},
            "text": f"word{n} of {self.host}",
            "lang": "en",
            "stars": n % 5 + 1,
            "at": 1_700_000_000 + n,
        }

    def page(self, number, size):
        """The items of a page, counted from 1."""
        first = (number - 1) * size
        return [self.item(n) for n in range(first, min(self.items, first + size))]
