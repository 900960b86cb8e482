"""Judges WARC files with revisit records by tools that are not Dodo's: each refers to a response that is there.

Prints how many records of each kind there are, as JSON.
"""

import json
import pathlib
import subprocess
import sys

from warcio.archiveiterator import ArchiveIterator

PROFILES = {
    "http://netpreserve.org/warc/1.1/revisit/server-not-modified": "not_modified",
    "http://netpreserve.org/warc/1.1/revisit/identical-payload-digest": "identical",
}
tools = pathlib.Path(sys.executable).parent


def fail(*what) -> None:
    sys.exit(" ".join(map(str, what)))


def lines(text: str) -> list:
    """The lines of an index but for the file's name and a type that is not known, which each tool writes in its own way."""
    found = []
    for line in text.splitlines():
        key, time, fields = line.split(" ", 2)
        own = lambda name, value: name == "filename" or (name, value) == ("mime", "unk")
        found.append((key, time, {name: value for name, value in json.loads(fields).items() if not own(name, value)}))
    return sorted(found, key=str)


names = sys.argv[1:]
subprocess.run([tools / "warcio", "check", *names], check=True, stdout=subprocess.DEVNULL)
ours = "".join(pathlib.Path(name.replace(".warc.gz", ".cdxj")).read_text() for name in names)
theirs = subprocess.run([tools / "cdxj-indexer", *names], check=True, capture_output=True, text=True).stdout
if lines(ours) != lines(theirs):
    fail("the indexes are not those of cdxj-indexer:", ours, theirs)
responses, revisits = {}, []
for name in names:
    with open(name, "rb") as stream:
        for record in ArchiveIterator(stream):
            headers = record.rec_headers
            uri, date = headers["WARC-Target-URI"], headers["WARC-Date"]
            if record.rec_type == "response":
                responses[headers["WARC-Record-ID"]] = (uri, date, headers["WARC-Payload-Digest"])
            elif record.rec_type == "revisit":
                body = record.content_stream().read()
                revisits.append((headers, record.http_headers.get_statuscode(), body))

counts = {"responses": len(responses), "not_modified": 0, "identical": 0}
for headers, status, body in revisits:
    kind = PROFILES.get(headers["WARC-Profile"]) or fail("an unknown profile", headers["WARC-Profile"])
    counts[kind] += 1
    original = responses.get(headers["WARC-Refers-To"])
    said = headers["WARC-Refers-To-Target-URI"], headers["WARC-Refers-To-Date"], headers["WARC-Payload-Digest"]
    if original != said or original[0] != headers["WARC-Target-URI"]:
        fail("a revisit refers to what is not there:", said, original)
    if body or (status == "304") != (kind == "not_modified"):
        fail("a revisit of profile", kind, "has status", status, "and a body of", len(body))
    if (headers["WARC-Truncated"] == "length") != (kind == "identical"):
        fail("a revisit of profile", kind, "says truncated:", headers["WARC-Truncated"])
print(json.dumps(counts))
