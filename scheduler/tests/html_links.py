"""The links of an HTML page by html.parser and urllib: none of our code."""

import re
from html.parser import HTMLParser
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

LINK_RELS = {"alternate", "next", "prev", "canonical"}
# What the name of a host cannot hold (WHATWG URL, "forbidden domain code point"), but for the brackets of IPv6.
NO_HOST = re.compile(r"[\x00-\x20%<>^|`\\]")
REFRESH = re.compile(r"""\s*[\d.]*[\s;,]*(?:url\s*=)?\s*(?P<quote>['"]?)(?P<url>.*)""", re.IGNORECASE | re.DOTALL)


class Links(HTMLParser):
    """The distinct links of a page in the order of their appearance."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.page = page
        self.base: str | None = None
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # Of an attribute that is given twice the first counts.
        given = dict(reversed(attrs))
        if tag in ("a", "area"):
            self.add(given.get("href"))
        elif tag == "link" and LINK_RELS & set((given.get("rel") or "").lower().split()):
            self.add(given.get("href"))
        elif tag in ("iframe", "frame"):
            self.add(given.get("src"))
        elif tag == "base" and self.base is None:
            self.base = given.get("href")
        elif tag == "meta" and (given.get("http-equiv") or "").strip().lower() == "refresh":
            found = REFRESH.match(given.get("content") or "")
            self.add(found["url"].split(found["quote"] or "\0")[0] if found else None)

    def add(self, reference: str | None) -> None:
        reference = (reference or "").strip()
        if reference and not reference.startswith("#"):
            self.references.append(reference)

    @property
    def found(self) -> dict[str, None]:
        base = urljoin(self.page, self.base or "")
        found: dict[str, None] = {}
        for reference in self.references:
            path, mark, rest = re.sub(r"[\t\r\n]", "", reference).partition("?")
            # Browsers take a backslash for a slash.
            parts = urlsplit(urldefrag(urljoin(base, path.replace("\\", "/") + mark + rest)).url)
            host = parts.netloc.lower().rpartition("@")[2]
            if parts.scheme in ("http", "https") and host and not NO_HOST.search(host):
                # What a URL cannot hold is escaped; what is, stays as it is.
                path, query = (quote(part, safe="%/:;=@!$&'()*+,~?[]|^") for part in (parts.path or "/", parts.query))
                found.setdefault(urlunsplit((parts.scheme, host, path, query, "")))
        return found
