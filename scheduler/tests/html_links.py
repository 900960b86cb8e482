"""The links of an HTML page by html.parser and urllib: none of our code."""

from html.parser import HTMLParser
from urllib.parse import urldefrag, urljoin, urlsplit

LINK_RELS = {"alternate", "next", "prev", "canonical"}


class Links(HTMLParser):
    """The distinct links of a page in the order of their appearance."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.page = page
        self.found: dict[str, None] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("a", "area"):
            self.add(given.get("href"))
        elif tag == "link" and LINK_RELS & set((given.get("rel") or "").lower().split()):
            self.add(given.get("href"))
        elif tag in ("iframe", "frame"):
            self.add(given.get("src"))

    def add(self, reference: str | None) -> None:
        reference = (reference or "").strip()
        if not reference or reference.startswith("#"):
            return
        url = urldefrag(urljoin(self.page, reference)).url
        if urlsplit(url).scheme in ("http", "https"):
            if not urlsplit(url).path:
                url += "/"
            self.found.setdefault(url)
