"""The site that scripts/bench crawls: generated once, served by an nginx of its own."""

import os
import random
import shutil
import socket
import subprocess
from pathlib import Path

LINKS = 50
PAGE_BYTES = 20_000
# Of what is generated below: a site of another version is made anew.
VERSION = 2


def url(port: int, page: int) -> str:
    return f"http://127.0.0.1:{port}/p{page}.html"


def generate(site: Path, pages: int) -> None:
    """Writes the pages unless a whole run did before: the mark comes last."""
    done = site / f"done-{VERSION}-{pages}"
    if done.exists():
        return
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(2000)]
    # Slices of one text are words in random order too, and made much faster.
    text = " ".join(rng.choices(words, k=300_000))
    for page in range(pages):
        (site / f"p{page}.html").write_text(html(page, pages, text, rng))
    done.touch()


def html(page: int, pages: int, text: str, rng: random.Random) -> str:
    parts = [f'<!doctype html><html lang="en"><head><title>Page {page}</title></head><body>']
    for target in targets(page, pages, rng):
        # Paragraphs fill what the anchors leave.
        anchor = f'<a href="/p{target}.html">link {target}</a>'
        room = max(0, PAGE_BYTES // LINKS - len(anchor) - 9)
        start = rng.randrange(len(text) - room)
        parts.append(f"<p>{text[start : start + room]}</p>{anchor}")
    return "\n".join(parts) + "</body></html>\n"


def targets(page: int, pages: int, rng: random.Random) -> list[int]:
    """2n+1 and 2n+2, by which every page is reached from page 0, and others; no page twice where there are enough."""
    tree = [child for child in (2 * page + 1, 2 * page + 2) if child < pages]
    seen = set(tree)
    found = list(tree)
    while len(found) < LINKS:
        other = rng.randrange(pages)
        if other not in seen or pages < 2 * LINKS:
            seen.add(other)
            found.append(other)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start_nginx(work: Path, site: Path) -> tuple[subprocess.Popen[bytes], int]:
    program = shutil.which("nginx")
    if program is None:
        raise SystemExit("bench: nginx is missing")
    port = free_port()
    temps = "".join(f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = work / "nginx.conf"
    config.write_text(
        # As root nginx would read the files as another user, who may not be able to walk there.
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1;"
        f"pid {work}/nginx.pid; error_log {work}/nginx.err;"
        "events { worker_connections 2048; }"
        f"http {{ types {{ text/html html; }} access_log off; sendfile on; keepalive_requests 10000000; {temps}"
        f"server {{ listen 127.0.0.1:{port}; root {site}; }} }}"
    )
    # -e: the log it opens before it has read the configuration. A session of its own: Ctrl-C is ours to handle.
    command = [program, "-e", str(work / "nginx.err"), "-c", str(config), "-p", str(work)]
    return subprocess.Popen(command, start_new_session=True), port
