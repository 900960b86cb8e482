#!/usr/bin/env python3
"""Checks what a fault campaign has left behind: rows of Postgres, objects as files, Redis' streams, the sites' own log.

    chaos_check.py TRUTH.json      prints {"violations": [...], "notes": [...], "counts": {...}}

TRUTH.json says what was submitted and what the sites serve. Nothing here uses Dodo's code or its API.
"""

import json
import os
import sys
from collections import Counter, defaultdict
from urllib.parse import parse_qs, urlsplit

import pg8000.native
import redis

import chaos_archive
import chaos_polite
from chaos_sites import Api, Site

# Violations of one kind that are shown.
SHOWN_MAX = 6
# Answers after which another try is due; 299 is an answer that is no JSON.
ERRORS = {429, 500, 503, 299}


class Findings:
    def __init__(self):
        self.by_kind, self.notes, self.counts = defaultdict(list), [], {}

    def bad(self, kind, what):
        self.by_kind[kind].append(what)

    def show(self):
        violations = []
        for kind, all_of_it in self.by_kind.items():
            violations += [f"{kind}: {what}" for what in all_of_it[:SHOWN_MAX]]
            if len(all_of_it) > SHOWN_MAX:
                violations.append(f"{kind}: and {len(all_of_it) - SHOWN_MAX} more")
        print(json.dumps({"violations": violations, "notes": self.notes, "counts": self.counts}))


class Postgres:
    def __init__(self, url):
        url = urlsplit(url)
        self.connection = pg8000.native.Connection(
            url.username, host=url.hostname, port=url.port, database=url.path.lstrip("/"), password=url.password
        )

    def rows(self, sql):
        rows = self.connection.run(sql)
        names = [column["name"] for column in self.connection.columns]
        return [dict(zip(names, (str(v) if type(v).__name__ == "UUID" else v for v in row))) for row in rows]


class World:
    """Everything that was left behind, read once."""

    def __init__(self, truth):
        self.truth = truth
        db = Postgres(truth["postgres"])
        self.log = db.rows(
            "SELECT id, dispatch, kind, host, attempt, url, remake_of, outcome, reason, status, raw_stream, raw_generation,"
            " raw_ms, raw_seq, page, total_pages FROM crawl_log"
        )
        self.left = db.rows("SELECT id, dispatch, kind, url, attempt, last_error FROM crawl_schedule")
        self.dispatches = db.rows(
            "SELECT d.id, d.kind, d.key, d.state, p.scheduled + coalesce(sum(x.scheduled), 0) AS scheduled,"
            " p.finished + coalesce(sum(x.finished), 0) AS finished, p.raw + coalesce(sum(x.raw), 0) AS raw,"
            " p.pages + coalesce(sum(x.pages), 0) AS pages, p.items + coalesce(sum(x.items), 0) AS items FROM dispatch d"
            " JOIN dispatch_progress p ON p.dispatch = d.id LEFT JOIN dispatch_delta x ON x.dispatch = d.id"
            " GROUP BY d.id, d.kind, d.key, d.state, p.scheduled, p.finished, p.raw, p.pages, p.items"
        )
        self.links = db.rows("SELECT p.dispatch, p.job, string_to_array(p.lines, E'\\n') AS links FROM page_link p")
        self.scraped = db.rows("SELECT dispatch, page, total_pages, items FROM page_scrape")
        self.records = db.rows("SELECT source, instance, external_id, text, rating FROM record")
        self.segments = db.rows("SELECT *, verified_at IS NOT NULL AS verified FROM archive_segment")
        self.raw = db.rows("SELECT stream, generation, ms, seq, job FROM raw_result")
        self.workers = db.rows("SELECT count(*) FILTER (WHERE lost_at IS NOT NULL) AS lost, count(*) AS n FROM worker")
        self.over = db.rows("SELECT (SELECT count(*) FROM kept_answer) AS kept, (SELECT count(*) FROM unfit_item) AS unfit")
        self.hosts, self.works = {}, []
        for schedule in truth["schedules"]:
            for host, spec in schedule["hosts"].items():
                self.hosts[host] = Site(host, spec) if spec["is"] == "site" else Api(host, spec)
            self.works += schedule["works"]
        with open(truth["sites"]) as lines:
            self.asked = [json.loads(line) for line in lines]
        self.by_dispatch = defaultdict(list)
        for row in self.log:
            self.by_dispatch[row["dispatch"]].append(row)


def check_jobs(world, found):
    """Every job ended once; what was made again replaces what it should; nothing is left."""
    for job, times in Counter(row["id"] for row in world.log).items():
        if times > 1:
            found.bad("a job ended twice", f"{job}: {times} rows of crawl_log")
    for row in world.left:
        found.bad("a job is left", f"{row}")
    of_job = {row["id"]: row for row in world.log}
    replaced = Counter(row["remake_of"] for row in world.log if row["remake_of"])
    for job, times in replaced.items():
        if times > 1:
            found.bad("a result was made again twice", job)
        if job not in of_job:
            found.bad("a result replaces nothing", job)
    submitted = {work["dispatch"]: work for work in world.works}
    known = {row["id"]: row for row in world.dispatches}
    for dispatch, work in submitted.items():
        if dispatch not in known:
            found.bad("a dispatch is gone", work["key"])
    for row in world.dispatches:
        if row["id"] not in submitted:
            found.bad("a dispatch that nobody submitted", f"{row['key']} {row['id']}")
        if row["state"] != "done":
            found.bad("a dispatch is not done", f"{row}")
        ended = len(world.by_dispatch[row["id"]])
        if not row["scheduled"] == row["finished"] == ended:
            found.bad("a count is wrong", f"{row['key']}: {row['scheduled']} scheduled, {row['finished']} finished, {ended} in the log")
        counted = [r for r in world.by_dispatch[row["id"]] if r["kind"] in ("crawl", "noop", "get_page")]
        good = sum(r["outcome"] == "ok" and not r["remake_of"] for r in counted)
        if row["pages"] != good:
            found.bad("a count is wrong", f"{row['key']}: {row['pages']} pages counted, {good} in the log")
        if row["raw"] != 0:
            found.bad("a count is wrong", f"{row['key']}: {row['raw']} results are said to be unarchived")
    if world.over[0]["kept"] or world.over[0]["unfit"]:
        found.bad("something is left over", f"{world.over[0]}")
    found.counts.update(jobs=len(world.log), remade=len(replaced), workers=world.workers[0]["n"], lost=world.workers[0]["lost"])


OUTCOMES = {"ok": "ok", "dead": "dead", "missing": "http_error", "redirect": "redirect", "private": "robots"}


def reachable(world, seeds):
    """URL to what must have become of it."""
    expected, front = {}, list(seeds)
    while front:
        url = front.pop()
        if url in expected:
            continue
        parts = urlsplit(url)
        site = world.hosts[parts.netloc]
        kind = site.kind(parts.path)
        expected[url] = kind
        if kind == "ok":
            front += site.links(parts.path)
        elif kind == "redirect":
            front.append(site.redirects_to(parts.path))
    return expected


def check_crawl(world, work, links, found):
    expected = reachable(world, work["seeds"])
    rows = world.by_dispatch[work["dispatch"]]
    firsts = Counter(row["url"] for row in rows if not row["remake_of"])
    for url in expected.keys() - firsts.keys():
        found.bad("a page was not crawled", f"{work['key']}: {url}")
    for url, times in firsts.items():
        if url not in expected:
            found.bad("a page was crawled that is not reachable", f"{work['key']}: {url}")
        elif times > 1:
            found.bad("a page was crawled twice", f"{work['key']}: {url}")
    for row in rows:
        want = OUTCOMES.get(expected.get(row["url"]))
        if want and row["outcome"] != want:
            found.bad("a wrong outcome", f"{work['key']}: {row['url']} ended {row['outcome']} ({row['reason']}), not {want}")
    stored = links[work["dispatch"]]
    for url, kind in expected.items():
        parts = urlsplit(url)
        want = [world.hosts[parts.netloc].links(parts.path)] if kind == "ok" else []
        if stored.get(url, []) != want:
            found.bad("links are not stored as they are", f"{work['key']}: {url}: {stored.get(url)}, not {want}")
    found.counts["pages"] = found.counts.get("pages", 0) + len(expected)


def check_source(world, work, found):
    source, name = work["source"], work["key"]
    api, size, once = world.hosts[source["host"]], source["size"], source["style"] == "once"
    last = -(-source["items"] // size)
    # A full last page is not believed to be the last where there is a count.
    looked = last + 1 if source["style"] != "cursor" and source["items"] % size == 0 else last
    rows = [row for row in world.by_dispatch[work["dispatch"]] if row["kind"] == "get_page"]
    calls = defaultdict(list)
    for ask in world.asked:
        if ask["host"] == source["host"] and not ask["path"].startswith("/count"):
            query = parse_qs(urlsplit(ask["path"]).query)
            page = int(query["page"][0]) if "page" in query else int(query.get("cursor", ["0"])[0] or 0) // size + 1
            calls[page].append(ask)
    firsts = defaultdict(list)
    for row in rows:
        if not row["remake_of"]:
            firsts[row["page"]].append(row)
    for page in range(1, last + 1):
        if len(firsts[page]) != 1:
            found.bad("a page of an API has not one job", f"{name}: page {page}: {len(firsts[page])}")
    for page in firsts.keys() - set(range(1, looked + 1)):
        found.bad("a page of an API too many", f"{name}: page {page}")
    for row in rows:
        # Where the last page was made again, the one behind it may be looked for again: without a request.
        if row["outcome"] == "ok" or (row["outcome"] == "duplicate" and last < row["page"] <= looked):
            continue
        served = [ask["status"] for ask in calls[row["page"]]]
        excused = once and (row["outcome"] == "unknown" or (row["outcome"] in ("http_error", "failed") and served and served[0] in ERRORS))
        if not excused:
            found.bad("a wrong outcome", f"{name}: page {row['page']} ended {row['outcome']} ({row['reason']}), served {served}")
    if once:
        for page, asks in calls.items():
            if len(asks) > 1:
                found.bad("a call was repeated that may not be", f"{name}: page {page}: {asks}")
    scraped = Counter((row["page"], row["total_pages"]) for row in world.scraped if row["dispatch"] == work["dispatch"])
    for place, times in scraped.items():
        if times > 1:
            found.bad("a page is stored twice", f"{name}: {place}")
    good = {row["page"] for row in rows if row["outcome"] == "ok"}
    if {page for page, _ in scraped} != good or len(scraped) != len(good):
        found.bad("stored pages are not those that ended well", f"{name}: {sorted(scraped)} and {sorted(good)}")
    want = {item["id"]: item for page in good for item in api.page(page, size)}
    have = {}
    for record in world.records:
        if record["source"] == source["name"]:
            if record["external_id"] in have:
                found.bad("an item is two records", f"{name}: {record}")
            have[record["external_id"]] = record
    counted = next((row["items"] for row in world.dispatches if row["id"] == work["dispatch"]), None)
    if counted != len(want):
        found.bad("a count is wrong", f"{name}: {counted} items counted, {len(want)} served and stored")
    if have.keys() != want.keys():
        missing, more = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
        found.bad("records are not the items", f"{name}: missing {missing[:5]} ({len(missing)}), unexpected {more[:5]}")
    for key in have.keys() & want.keys():
        if (have[key]["text"], have[key]["rating"]) != (want[key]["text"], want[key]["stars"]):
            found.bad("a record is not its item", f"{name}: {have[key]}")
    found.counts["items"] = found.counts.get("items", 0) + len(want)
    unknown = sum(row["outcome"] == "unknown" for row in rows)
    found.counts["unknown"] = found.counts.get("unknown", 0) + unknown


def check_noops(world, work, found):
    rows = world.by_dispatch[work["dispatch"]]
    firsts = sum(not row["remake_of"] for row in rows)
    if firsts != work["count"]:
        found.bad("no-ops are not complete", f"{work['key']}: {firsts} of {work['count']}")
    for row in rows:
        if row["outcome"] != ("quarantined" if work["aborts"] else "dead" if work["fails"] else "ok"):
            found.bad("a wrong outcome", f"{work['key']}: {row['id']} ended {row['outcome']} ({row['reason']})")


def check_attempts(world, found):
    """A try is counted only where the site has answered with an error."""
    errors = Counter((ask["host"], ask["path"]) for ask in world.asked if ask["status"] in ERRORS)
    told_to_fail = {work["dispatch"] for work in world.works if work["fails"]}
    tried, example = Counter(), {}
    for row in world.log + world.left:
        if not row["attempt"] or row["dispatch"] in told_to_fail:
            continue
        if not row["url"]:
            found.bad("an attempt was burned", f"{row}")
            continue
        parts = urlsplit(row["url"])
        place = (parts.netloc, parts.path + (f"?{parts.query}" if parts.query else ""))
        tried[place] += row["attempt"]
        example[place] = row
    for place, times in tried.items():
        if times > errors[place]:
            found.bad("an attempt was burned", f"{place}: {times} tries counted, {errors[place]} errors served; {example[place]}")


def check_streams(world, found):
    """What is left in the streams was archived, or never counted."""
    client = redis.Redis.from_url(world.truth["redis"])
    committed = {(row["raw_stream"], row["raw_ms"], row["raw_seq"]) for row in world.log if row["raw_stream"]}
    for stream in ("pages", "items"):
        left = client.xrange(f"dodo:{stream}")
        ids = [tuple(map(int, entry.decode().split("-"))) for entry, _ in left]
        counting = sum((stream, *id) in committed for id in ids)
        if left:
            found.notes.append(f"{len(left)} entries left in {stream}, {counting} of them archived too")
    for row in world.raw:
        found.bad("a result is not archived", f"{row}")


def main():
    with open(sys.argv[1]) as file:
        truth = json.load(file)
    world, found = World(truth), Findings()
    check_jobs(world, found)
    url_of = {row["id"]: row["url"] for row in world.log}
    links = defaultdict(lambda: defaultdict(list))
    for row in world.links:
        links[row["dispatch"]][url_of.get(row["job"])].append(row["links"])
    for work in world.works:
        if work["kind"] == "crawl":
            check_crawl(world, work, links, found)
        elif work["kind"] == "source":
            check_source(world, work, found)
        else:
            check_noops(world, work, found)
    check_attempts(world, found)
    check_streams(world, found)
    chaos_archive.check(world, found, os.path.dirname(os.path.abspath(sys.argv[1])))
    chaos_polite.check(world, found)
    found.counts["requests"] = len(world.asked)
    found.show()


main()
