"""Computes special_file.json again from the raw files of a run, without any of our code, and compares.

Arguments: the data directory of `dodo up`, the API's raw items. Pages and links come from the WARC files of the
archive, items from its NDJSON files, and what the items should be from the API's own file.
"""

import json
import pathlib
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from datetime import datetime, timezone

import duckdb
from html_links import Links
from warcio.archiveiterator import ArchiveIterator

DATA, ITEMS = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
ARCHIVE = DATA / "s3" / "objects" / "dodo" / "archive" / "default"

pages = links = 0
for warc in sorted(ARCHIVE.glob("pages/*/*.warc.gz")):
    with warc.open("rb") as stream:
        for record in ArchiveIterator(stream):
            if record.rec_type != "response":
                continue
            status = int(record.http_headers.get_statuscode())
            kind = record.http_headers.get_header("Content-Type") or ""
            body = record.content_stream().read()
            if not 200 <= status < 300:
                continue
            pages += 1
            if kind.startswith("text/html"):
                charset = re.search(r"charset=([\w-]+)", kind)
                parser = Links(record.rec_headers.get_header("WARC-Target-URI"))
                parser.feed(body.decode(charset.group(1) if charset else "utf-8", errors="replace"))
                links += len(parser.found)
            elif kind.startswith("application/xml"):
                links += len({loc.text for loc in ElementTree.fromstring(body).findall(".//{*}loc")})

files = [str(path) for path in sorted(ARCHIVE.glob("items/*/*.ndjson.zst"))]
rows = duckdb.execute(
    "SELECT json FROM read_ndjson_objects(?, compression = 'zstd')", [files]
).fetchall()
entries = [json.loads(row[0]) for row in rows]
fetched = {}
for entry in entries:
    for item in entry["items"]:
        fetched[(entry["source"], entry["instance"], item["id"])] = item
raw = {item["id"]: item for item in json.loads(ITEMS.read_text())}
got = {key[2]: item for key, item in fetched.items()}
if got != raw:
    sys.exit(f"the archive has {len(got)} items, the API {len(raw)}; differing: {[k for k in raw if got.get(k) != raw[k]][:5]}")

letters = Counter()
for item in raw.values():
    for word in re.findall(r"[^\W\d_]+", item["body"]):
        letters[word[-1].lower()] += 1
times = sorted(item["posted"] for item in raw.values())


def moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


want = {
    "version": 1,
    "pages": pages,
    "links": links,
    "api_pages": len({(e["dispatch"], e["page"], e["total_pages"]) for e in entries}),
    "api_items": sum(len(entry["items"]) for entry in entries),
    "items_by_source": dict(Counter(key[0] for key in fetched)),
    "unfit": 0,
    "words": letters.total(),
    "words_by_last_letter": dict(letters),
    "records_by_language": dict(Counter(item["lang"] or "und" for item in raw.values())),
    "records_by_rating": dict(Counter(str(item["stars"] or "none") for item in raw.values())),
    "time_range": {"first": moment(times[0]), "last": moment(times[-1])},
}
report = json.loads((DATA / "special_file.json").read_text())
for name in want.keys() | report.keys():
    if want.get(name) != report.get(name):
        sys.exit(f"{name}: the report says {report.get(name)}, the raw files {want.get(name)}")
print(f"{pages} pages, {links} links, {len(raw)} items, {want['words']} words: all as reported")
