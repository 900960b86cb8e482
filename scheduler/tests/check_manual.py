"""Judges crawls of static sites without any of our code.

Arguments: nginx's log and the directory with the WARC files; then for each site its files, its port, the directory with
its exports and how many of its files can be reached at least. Walks the files from index.html by html.parser and urllib as
nginx serves them, and compares what is reachable with nginx's log, the exported jobs, the exported links and the archived
responses, both ways.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
from collections import Counter
from urllib.parse import unquote, urlsplit

from html_links import Links
from warcio.archiveiterator import ArchiveIterator


class Site:
    """The files below a directory, as nginx serves them."""

    def __init__(self, root: str, port: str, out: str, files_min: str) -> None:
        self.root, self.out, self.files_min = pathlib.Path(root), pathlib.Path(out), int(files_min)
        self.base = f"http://127.0.0.1:{port}"
        # URL to what it is: the file, the place it redirects to, or nothing.
        self.reachable: dict[str, pathlib.Path | str | None] = {}
        self.links: dict[str, list[str]] = {}
        self.walk(f"{self.base}/index.html")

    def walk(self, start: str) -> None:
        queue = [start]
        while queue:
            url = queue.pop()
            if url in self.reachable:
                continue
            found = self.reachable[url] = self.serve(url)
            if isinstance(found, str):
                queue.append(found)
            elif found is not None and found.suffix == ".html":
                parser = Links(url)
                parser.feed(found.read_text("utf-8", errors="replace"))
                parser.close()
                self.links[url] = list(parser.found)
                queue.extend(link for link in self.links[url] if link.startswith(f"{self.base}/"))

    def serve(self, url: str) -> pathlib.Path | str | None:
        path = urlsplit(url).path
        place = self.root / unquote(path).lstrip("/")
        if place.is_dir():
            if not path.endswith("/"):
                return f"{self.base}{path}/"
            place /= "index.html"
        return place if place.is_file() and not (path.endswith("/") and not place.name == "index.html") else None


def fail(what: str, difference: object) -> None:
    print(f"{what}: {difference}")
    sys.exit(1)


def compare(what: str, got: set[str], want: set[str]) -> None:
    if got != want:
        fail(what, f"missing {sorted(want - got)[:5]}, unexpected {sorted(got - want)[:5]}")


def once(what: str, counted: Counter[str]) -> None:
    if twice := [url for url, count in counted.items() if count != 1]:
        fail(what, twice[:5])


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


sites = [Site(*sys.argv[at : at + 4]) for at in range(3, len(sys.argv), 4)]
log, warc_dir = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
requested: dict[str, Counter[str]] = {site.base: Counter() for site in sites}
for line in log.read_text().splitlines():
    port, path, _ = line.split()
    if path != "/robots.txt":
        requested[f"http://127.0.0.1:{port}"][f"http://127.0.0.1:{port}{path}"] += 1

# Body by URL, of each response that is archived.
archived: Counter[str] = Counter()
stored: dict[str, str] = {}
warcs = sorted(warc_dir.glob("*.warc.gz"))
tools = pathlib.Path(sys.executable).parent
for warc in warcs:
    subprocess.run([tools / "warcio", "check", warc], check=True, stdout=subprocess.DEVNULL)
    with warc.open("rb") as stream:
        for record in ArchiveIterator(stream):
            if record.rec_type == "response":
                url = record.rec_headers.get_header("WARC-Target-URI")
                archived[url] += 1
                stored[url] = sha256(record.content_stream().read())
index = subprocess.run([tools / "cdxj-indexer", *warcs], check=True, capture_output=True, text=True).stdout.splitlines()
answered = 0

for site in sites:
    name = site.root
    want = set(site.reachable)
    files = {url: found for url, found in site.reachable.items() if isinstance(found, pathlib.Path)}
    if len(files) < site.files_min:
        fail(f"{name}: too few files to prove anything", f"{len(files)} of {site.files_min}")
    compare(f"{name}: nginx's log", set(requested[site.base]), want)
    once(f"{name}: requested more than once", requested[site.base])

    jobs = [json.loads(line) for line in (site.out / "pages.ndjson").read_text().splitlines()]
    answered += sum(1 for job in jobs if job["status"] is not None)
    once(f"{name}: logged more than once", Counter(job["url"] for job in jobs))
    compare(f"{name}: logged", {job["url"] for job in jobs if job["status"] is not None}, want)
    compare(f"{name}: fetched", {job["url"] for job in jobs if job["status"] == 200}, set(files))
    moved = {url for url, found in site.reachable.items() if isinstance(found, str)}
    compare(f"{name}: redirected", {job["url"] for job in jobs if job["status"] == 301}, moved)

    links: dict[str, list[str]] = {}
    for line in (site.out / "links.ndjson").read_text().splitlines():
        row = json.loads(line)
        links.setdefault(row["page"], []).append(row["link"])
    for url in files:
        # A page's links, each once.
        if Counter(links.get(url, [])) != Counter(site.links.get(url, [])):
            got, wanted = set(links.get(url, [])), set(site.links.get(url, []))
            fail(f"{name}: links of {url}", f"missing {sorted(wanted - got)[:5]}, unexpected {sorted(got - wanted)[:5]}")

    compare(f"{name}: archived", {url for url in archived if url.startswith(f"{site.base}/")}, want)
    for url, found in files.items():
        if stored[url] != sha256(found.read_bytes()):
            fail(f"{name}: the archived body is not the file", url)
    total = sum(len(found) for found in site.links.values())
    print(f"{name}: {len(files)} of {len(want)} URLs are files, {len(site.links)} of them HTML with {total} links: all as expected")

if not (sum(archived.values()) == len(index) == answered):
    fail("archived responses, cdxj-indexer lines and answered jobs", (sum(archived.values()), len(index), answered))
once("archived more than once", archived)
print(f"{len(index)} archived responses in {len(warcs)} WARC files")
