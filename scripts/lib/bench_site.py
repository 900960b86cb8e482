"""Sites to crawl: a generated one behind nginx, and one that holds its answers back and notes who asked when."""

import asyncio
import itertools
import os
import pathlib
import random
import shutil
import subprocess
import threading
import time

from bench_process import free_port, start

LINKS = 50
PAGE_BYTES = 20_000
WORDS = 2000
# As often as in English, roughly.
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
LETTER_WEIGHTS = [127, 91, 82, 75, 70, 67, 63, 61, 60, 43, 40, 28, 28, 24, 22, 24, 20, 19, 10, 15, 20, 8, 2, 1, 2, 1]


def generate(site: pathlib.Path, pages: int, page_bytes: int = PAGE_BYTES) -> None:
    """Page n links to 2n+1 and 2n+2, so that every page is reachable, and to 48 others. Its words come as often as those of
    a language (Zipf), in the markup of a list of articles: gzip makes of it 3.1 to 1, of real manuals 3.3 to 4.4."""
    done = site / f"done-articles-{pages}"
    if done.exists():
        return
    shutil.rmtree(site, ignore_errors=True)
    site.mkdir(parents=True)
    rng = random.Random(1)
    words = ["".join(rng.choices(LETTERS, LETTER_WEIGHTS, k=rng.randint(2, 5) if rank < 100 else rng.randint(4, 10))) for rank in range(WORDS)]
    zipf = list(itertools.accumulate(1 / (rank + 1) for rank in range(WORDS)))
    room = page_bytes // LINKS - len(article(pages, ""))
    for n in range(pages):
        targets = [(2 * n + 1) % pages, (2 * n + 2) % pages] + [rng.randrange(pages) for _ in range(LINKS - 2)]
        articles = [article(to, " ".join(rng.choices(words, cum_weights=zipf, k=room // 3))[:room]) for to in targets]
        head = f'<!doctype html><html lang="en"><head><title>Page {n}</title></head><body>'
        (site / f"p{n}.html").write_text("\n".join([head, *articles]) + "</body></html>\n")
    done.touch()


def article(to: int, text: str) -> str:
    title = f'<h3 class="card__title"><a class="card__link" href="/p{to}.html">Page {to}</a></h3>'
    return f'<article class="card card--wide" id="p{to}">{title}<p class="card__text">{text}</p></article>'


def make_certificate(work: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """One for 127.0.0.1 that nobody has signed, and its key."""
    certificate, key = work / "site.pem", work / "site.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


def start_nginx(work: pathlib.Path, site: pathlib.Path, secured: tuple[pathlib.Path, pathlib.Path] | None = None) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    tls = f"ssl_certificate {secured[0]}; ssl_certificate_key {secured[1]};" if secured else ""
    temp = "".join(f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = work / "nginx.conf"
    config.write_text(
        # As root nginx would read the files as another user, who may not be able to walk there.
        f"{'user root;' if os.geteuid() == 0 else ''} daemon off; worker_processes 1; pid {work}/nginx.pid; error_log {work}/nginx.err;"
        "events { worker_connections 2048; }"
        f"http {{ types {{ text/html html; }} access_log off; sendfile on; keepalive_requests 10000000; {temp}"
        f"server {{ listen 127.0.0.1:{port}{' ssl' if secured else ''}; {tls} root {site}; }} }}"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    return start([program, "-c", config, "-p", work], work, subprocess.DEVNULL), port


class SlowSite:
    """Answers each page `delay_s` late, or, where that is None, when [`release`] is called. `hits` holds each request's
    path with the times at which it came. With `pages` its paths are numbers, of which each links to the two of a heap; each page
    has at least so many `page_bytes`. `most` is how many requests it has held at once."""

    def __init__(self, delay_s: float | None, pages: int = 0, page_bytes: int = 0) -> None:
        self.delay_s = delay_s
        self.pages = pages
        self.filler = "slow " * (page_bytes // 5)
        self.waiting = self.most = 0
        self.hits: dict[str, list[float]] = {}
        self.lock = threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.gate = asyncio.Event()
        self.port = free_port()
        ready = threading.Event()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        if not ready.wait(10):
            raise RuntimeError("the slow site does not start")

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def times(self, path: str) -> list[float]:
        with self.lock:
            return list(self.hits.get(path, []))

    def release(self) -> None:
        """Answers what is held; what comes later is held again."""

        def turn() -> None:
            self.gate.set()
            self.gate = asyncio.Event()

        self.loop.call_soon_threadsafe(turn)

    def _run(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024))
        ready.set()
        self.loop.run_forever()

    def links(self, path: str) -> str:
        children = (2 * int(path[1:]) + 1, 2 * int(path[1:]) + 2) if self.pages else ()
        return "".join(f"<a href=/{child}>" for child in children if child < self.pages)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                if path == "/robots.txt":
                    writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                else:
                    with self.lock:
                        self.hits.setdefault(path, []).append(time.time())
                    self.waiting += 1
                    self.most = max(self.most, self.waiting)
                    await (self.gate.wait() if self.delay_s is None else asyncio.sleep(self.delay_s))
                    self.waiting -= 1
                    body = f"<!doctype html><title>{path}</title><p>slow{self.links(path)}{self.filler}".encode()
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
