"""One row that asks to be fetched, how rows were dropped before that, and every way a fetch can end."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field


def whole_text(text: str) -> str:
    """The text without halves of characters (lone surrogates) and control characters: no file can hold them."""
    if text.isprintable():
        return text
    return "".join(c for c in text if c.isspace() or unicodedata.category(c) not in ("Cc", "Cs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What a table (or an annotation file) says about one image somewhere on the web or on a disk.

    Its texts are made whole (`whole_text`): a caption cut in the middle of an emoji is common, and loses its half.
    """

    url: str
    caption: str
    table: str  # the file that named it
    row: int  # its place in that file, from 0
    width: int = 0  # pixels as the table has them; 0: it doesn't say
    height: int = 0
    licence: str = ""
    author: str = ""
    page: str = ""  # where the image is shown with its author's name
    key: str = ""  # the set's own id of the image
    checksum: str = ""  # md5 (32) or sha256 (64) of the file in lower-case hex, where the table has one
    phash: str = ""  # 64-bit perceptual hash, 16 lower-case hex digits (COYO's image_phash)

    def __post_init__(self) -> None:
        for name in ("caption", "licence", "author", "page", "key"):
            text: str = getattr(self, name)
            if not text.isprintable():
                object.__setattr__(self, name, whole_text(text))


@dataclass(slots=True, kw_only=True)
class Funnel:
    """How many rows were read, what each filter dropped, in the order they were asked, and what is left."""

    rows: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    left: int = 0

    def drop(self, why: str, n: int) -> None:
        """Count n more rows dropped by one filter."""
        self.dropped[why] = self.dropped.get(why, 0) + n


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a fetch can end: `again` says whether a later run tries the URL once more."""

    code: str  # as it stands in the ledger
    what: str
    again: bool = False
    hint: str = ""


KEPT = "ok"
FETCHED = "fetched"  # good, and waiting in the staging folder for the rows before it
DUPLICATE = "duplicate"
SURPLUS = "surplus"

_ALL = (
    Outcome(code=KEPT, what="kept"),
    Outcome(code=FETCHED, what="fetched, waits for the rows before it", again=True),
    Outcome(code=DUPLICATE, what="the same bytes as an image kept before"),
    Outcome(code=SURPLUS, what="good, but past --limit: discarded", again=True),
    Outcome(code="bad-url", what="no http or https address"),
    Outcome(
        code="private-address",
        what="leads to a private or local address",
        hint="--allow-private-hosts, if these are your own servers",
    ),
    Outcome(code="dns", what="the host's name was not found", again=True),
    Outcome(code="connect", what="no connection", again=True, hint="run again later"),
    Outcome(code="tls", what="the host's certificate or TLS failed", again=True),
    Outcome(code="timeout", what="too slow", again=True, hint="run again, or raise --timeout"),
    Outcome(
        code="robots",
        what="its site's robots.txt asks not to",
        hint="--ignore-robots, where you have the owner's leave",
    ),
    Outcome(
        code="robots-unreachable",
        what="its site's robots.txt could not be read",
        again=True,
        hint="run again later",
    ),
    Outcome(
        code="opt-out",
        what="its owner opts out of use for AI",
        hint="--ignore-opt-out, where you have the owner's leave",
    ),
    Outcome(code="host-failing", what="its host kept failing and was left alone", again=True, hint="run again later"),
    Outcome(
        code="host-paused",
        what="its host asked to be left alone for longer",
        again=True,
        hint="run again later",
    ),
    Outcome(code="reset", what="the connection broke off", again=True, hint="run again later"),
    Outcome(code="bad-answer", what="an answer that breaks the rules of HTTP"),
    Outcome(code="redirects", what="redirected in circles, too often or to nowhere"),
    Outcome(code="too-large", what="more bytes than --max-bytes", hint="--max-bytes"),
    Outcome(code="too-many-pixels", what="more pixels than --max-pixels", hint="--max-pixels"),
    Outcome(code="missing", what="not in the images folder", again=True, hint="look at --images"),
    Outcome(code="empty", what="an empty answer"),
    Outcome(code="not-an-image", what="not an image (a web page, SVG, ...)"),
    Outcome(code="broken-image", what="a broken or truncated image"),
    Outcome(code="too-small", what="smaller than --min-size"),
    Outcome(code="extreme-aspect", what="longer than --max-aspect"),
    Outcome(
        code="hash",
        what="not the file the table's checksum means",
        hint="--check-hash off keeps re-encoded files",
    ),
)
_BY_CODE = {outcome.code: outcome for outcome in _ALL}
_HTTP = {
    401: "wants a login",
    403: "forbidden",
    404: "not found",
    410: "gone",
    429: "too many requests",
    451: "withheld for legal reasons",
    503: "unavailable",
}
_HTTP_AGAIN = frozenset({408, 425, 429})

# these depend on the options of the run that met them, so another query asks anew
OF_THE_QUERY = frozenset(
    {SURPLUS, DUPLICATE, FETCHED, "private-address", "robots", "opt-out"}
    | {"too-large", "too-many-pixels", "too-small", "extreme-aspect", "hash"}
)


def outcome(code: str) -> Outcome:
    """The outcome a ledger code stands for; `http-404` and its kin are made from the status."""
    known = _BY_CODE.get(code)
    if known is not None:
        return known
    if code.startswith("http-") and code[5:].isdigit():
        status = int(code[5:])
        again = status in _HTTP_AGAIN or status >= 500
        name = _HTTP.get(status, "server error" if status >= 500 else "refused")
        hint = "fewer at a time: --per-host 1" if status == 429 else "run again later" if again else ""
        return Outcome(code=code, what=f"HTTP {status} ({name})", again=again, hint=hint)
    return Outcome(code=code, what=code)
