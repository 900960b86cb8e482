"""Whether the archive, read by other people's readers, holds what was committed: everything, once, as it was served."""

import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from urllib.parse import urlsplit

import zstandard
from warcio.archiveiterator import ArchiveIterator


def check(world, found, dir):
    root = world.truth["objects"]
    verified = {row["key"]: row for row in world.segments if row["verified"]}
    files = {}
    for place, _, names in os.walk(os.path.join(root, "archive")):
        for name in names:
            path = os.path.join(place, name)
            files[os.path.relpath(path, root)] = path
    entries, cache = [], Cache(os.path.join(dir, "decoded.json"))
    for key, row in verified.items():
        entries += read(key, row, files, cache, found)
    cache.save()
    orphans = [key for key in files if segment_of(key) not in {segment_of(k) for k in verified}]
    planned = [row["key"] for row in world.segments if not row["verified"]]
    if orphans or planned:
        found.notes.append(f"{len(orphans)} objects of no verified segment {orphans[:2]}, {len(planned)} planned segments {planned[:2]}")
    disjoint(world, found)
    compare(world, entries, found)
    found.counts.update(segments=len(verified), entries=len(entries))


def segment_of(key):
    for end in (".json", ".warc.gz", ".ndjson.zst", ".cdxj"):
        key = key.removesuffix(end)
    return key


class Cache:
    """What was decoded of an object, by its hash: the same bytes need not be decoded again."""

    def __init__(self, path):
        self.path, self.known, self.seen = path, {}, {}
        if os.path.exists(path):
            with open(path) as file:
                self.known = json.load(file)

    def get(self, sha256, decode):
        self.seen[sha256] = self.known.get(sha256) or decode()
        return self.seen[sha256]

    def save(self):
        with open(self.path, "w") as file:
            json.dump(self.seen, file)


def read(key, row, files, cache, found):
    """The entries of a segment as dicts, with their place."""
    if key not in files or f"{key}.json" not in files:
        found.bad("an archived object is gone", key)
        return []
    with open(files[key], "rb") as file:
        data = file.read()
    with open(files[f"{key}.json"]) as file:
        sidecar = json.load(file)
    sha256 = hashlib.sha256(data).hexdigest()
    # The row's hash was planned before the upload, the sidecar's lies beside the object.
    if not sha256 == sidecar["sha256"] == row["sha256"] or len(data) != sidecar["bytes"]:
        found.bad("an archived object is not what its sidecar says", key)
        return []
    if sidecar.get("index_sha256"):
        index = files.get(key.replace(".warc.gz", ".cdxj"))
        if not index or hashlib.sha256(open(index, "rb").read()).hexdigest() != sidecar["index_sha256"]:
            found.bad("an index is not what its sidecar says", key)
    decode = (lambda: of_warc(data, sidecar)) if key.endswith(".warc.gz") else (lambda: of_lines(data))
    entries = cache.get(sha256, decode)
    if len(entries) != sidecar["count"] or len(entries) != row["entries"]:
        found.bad("a segment has not as many entries as it says", f"{key}: {len(entries)}, {sidecar['count']}, {row['entries']}")
    low, high = (row["first_ms"], row["first_seq"]), (row["last_ms"], row["last_seq"])
    ids = [tuple(entry["at"]) for entry in entries]
    if ids != sorted(set(ids)) or (ids and (ids[0] < low or ids[-1] > high)):
        found.bad("a segment's entries are out of order or range", key)
    return [dict(entry, stream=row["stream"], generation=row["generation"], key=key) for entry in entries]


def place(id):
    return list(map(int, id.split("-"))) if isinstance(id, str) else [id["ms"], id["seq"]]


def of_warc(data, sidecar):
    entries = []
    for id, offset, length in sidecar["entries"]:
        for record in ArchiveIterator(io.BytesIO(data[offset : offset + length])):
            body = record.content_stream().read()
            entries.append({
                "at": place(id),
                "job": record.rec_headers["WARC-Record-ID"].split(":")[-1].rstrip(">"),
                "url": record.rec_headers["WARC-Target-URI"],
                "status": int(record.http_headers.get_statuscode()),
                "sha256": hashlib.sha256(body).hexdigest(),
            })
    # As other readers see the whole file: one warcinfo and as many responses.
    kinds = Counter(record.rec_type for record in ArchiveIterator(io.BytesIO(data)))
    if kinds != {"warcinfo": 1, "response": len(entries)}:
        raise SystemExit(f"a WARC file holds {dict(kinds)}")
    return entries


def of_lines(data):
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    lines = reader.read().decode().splitlines()
    return [{"at": place(line.pop("id")), "line": line} for line in map(json.loads, lines)]


def disjoint(world, found):
    ranges = defaultdict(list)
    for row in world.segments:
        of = (row["tenant"], row["stream"], row["generation"])
        ranges[of].append(((row["first_ms"], row["first_seq"]), (row["last_ms"], row["last_seq"]), row["key"]))
    for of, all_of_it in ranges.items():
        all_of_it.sort()
        for before, after in zip(all_of_it, all_of_it[1:]):
            if after[0] <= before[1]:
                found.bad("two segments overlap", f"{of}: {before[2]} and {after[2]}")


def compare(world, entries, found):
    """Each committed result is archived once, or was made again; nothing else is archived."""
    committed = {}
    for row in world.log:
        if row["raw_stream"]:
            committed[(row["raw_stream"], row["raw_generation"], row["raw_ms"], row["raw_seq"])] = row
    replaced = {row["remake_of"] for row in world.log if row["remake_of"]}
    seen, noops = Counter(), defaultdict(Counter)
    works = {work["dispatch"]: work for work in world.works}
    for entry in entries:
        at = (entry["stream"], entry["generation"], *entry["at"])
        seen[at] += 1
        row = committed.get(at)
        if row is None:
            found.bad("something is archived that does not count", f"{at} in {entry['key']}")
        elif row["id"] in replaced:
            found.bad("something is archived that was made again", f"{at} of job {row['id']}")
        elif entry["stream"] == "pages":
            compare_page(world, entry, row, found)
        elif row["kind"] == "noop":
            noops[entry["line"].get("burst")][entry["line"].get("n")] += 1
        else:
            source = works[row["dispatch"]]["source"] if row["dispatch"] in works else None
            if source and entry["line"]["items"] != world.hosts[source["host"]].page(row["page"], source["size"]):
                found.bad("archived items are not those that were served", f"{source['name']} page {row['page']}")
    for at, row in committed.items():
        if seen[at] != 1 and row["id"] not in replaced:
            found.bad("a result is archived other than once", f"{at} of job {row['id']} ({row['url']}): {seen[at]} times")
    for work in world.works:
        count = 0 if work["fails"] or work["aborts"] else work["count"]
        if work["kind"] == "noop" and noops[work["key"]] != Counter(range(count)):
            have = noops[work["key"]]
            missing = [n for n in range(count) if not have[n]]
            twice = [n for n, times in have.items() if times > 1]
            found.bad("payloads are not archived once each", f"{work['key']}: missing {missing[:5]}, twice {twice[:5]}")


def compare_page(world, entry, row, found):
    if entry["job"] != row["id"] or entry["url"] != row["url"] or entry["status"] != row["status"]:
        found.bad("an archived page is another job's", f"{entry} and {row}")
        return
    parts = urlsplit(entry["url"])
    site = world.hosts[parts.netloc]
    body = site.body(parts.path) if site.kind(parts.path) == "ok" and entry["status"] == 200 else b""
    if hashlib.sha256(body).hexdigest() != entry["sha256"]:
        found.bad("an archived page is not what was served", f"{entry}")
