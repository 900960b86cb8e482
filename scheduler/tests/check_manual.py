"""Judges a crawl of a static site without any of our code.

Arguments: the site's files, nginx's log, the directory with exports and WARC files, the port.
Walks the files from index.html by html.parser and urllib, counts what is reachable, and compares that
with nginx's log, the exported jobs, the exported links and the archived responses.
"""

import json
import pathlib
import subprocess
import sys
from collections import Counter
from urllib.parse import unquote, urlsplit

from html_links import Links
from warcio.archiveiterator import ArchiveIterator

ROOT, LOG, OUT, PORT = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), sys.argv[4]
BASE = f"http://127.0.0.1:{PORT}"


def links_of(url: str) -> list[str] | None:
    """The links of a page of the site; None where there is no such HTML file."""
    path = ROOT / unquote(urlsplit(url).path).lstrip("/")
    if not path.is_file() or path.suffix != ".html":
        return None
    parser = Links(url)
    parser.feed(path.read_text("utf-8", errors="replace"))
    return list(parser.found)


def reachable() -> dict[str, list[str]]:
    pages: dict[str, list[str]] = {}
    queue = [f"{BASE}/index.html"]
    while queue:
        url = queue.pop()
        if url in pages:
            continue
        links = links_of(url)
        if links is None:
            continue
        pages[url] = links
        queue.extend(link for link in links if link.startswith(f"{BASE}/"))
    return pages


def fail(what: str, difference: object) -> None:
    print(f"{what}: {difference}")
    sys.exit(1)


def compare(what: str, got: set[str], want: set[str]) -> None:
    if got != want:
        fail(what, f"missing {sorted(want - got)[:5]}, unexpected {sorted(got - want)[:5]}")


pages = reachable()
want = set(pages)

requested = Counter(line.split()[0] for line in LOG.read_text().splitlines() if line.split()[1] == "200")
html = {f"{BASE}{path}": count for path, count in requested.items() if path.endswith(".html")}
compare("nginx's log", set(html), want)
if twice := [url for url, count in html.items() if count != 1]:
    fail("requested more than once", twice[:5])

jobs = [json.loads(line) for line in (OUT / "pages.ndjson").read_text().splitlines()]
logged = Counter(job["url"] for job in jobs)
ok = {job["url"] for job in jobs if job["state"] == "ok" and job["url"].endswith(".html")}
compare("logged", ok, want)
if twice := [url for url, count in logged.items() if count != 1]:
    fail("logged more than once", twice[:5])

stored: dict[str, list[str]] = {}
for line in (OUT / "links.ndjson").read_text().splitlines():
    row = json.loads(line)
    stored.setdefault(row["page"], []).append(row["link"])
total = 0
for url, links in pages.items():
    got = stored.get(url, [])
    if set(got) != set(links):
        fail(f"links of {url}", f"missing {sorted(set(links) - set(got))[:5]}, unexpected {sorted(set(got) - set(links))[:5]}")
    total += len(got)

tools = pathlib.Path(sys.executable).parent
warcs = sorted(OUT.glob("*.warc.gz"))
archived: Counter[str] = Counter()
for warc in warcs:
    subprocess.run([tools / "warcio", "check", warc], check=True, stdout=subprocess.DEVNULL)
    with warc.open("rb") as stream:
        for record in ArchiveIterator(stream):
            if record.rec_type == "response":
                url = record.rec_headers.get_header("WARC-Target-URI")
                archived[url] += 1
                if url in pages:
                    body = record.content_stream().read()
                    if body != (ROOT / urlsplit(url).path.lstrip("/")).read_bytes():
                        fail("archived body differs", url)
index = subprocess.run([tools / "cdxj-indexer", *warcs], check=True, capture_output=True, text=True).stdout.splitlines()
requests = sum(1 for job in jobs if job["status"] is not None)
if not (sum(archived.values()) == len(index) == requests):
    fail("archived responses, cdxj-indexer lines and answered jobs", (sum(archived.values()), len(index), requests))
compare("archived", {url for url in archived if url in want}, want)
print(f"{len(want)} pages, {total} links, {len(index)} archived responses in {len(warcs)} WARC files: all as expected")
