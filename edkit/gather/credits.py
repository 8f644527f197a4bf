"""`edkit credits`: who made the images of a folder, under which licence, and where they came from."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edkit.data.atomic import write_text
from edkit.data.catalog import Catalog, LedgerRow, Unreadable, opened
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.data.redo import DONE, TOLD
from edkit.data.walk import walk
from edkit.gather.laion import licence_name

UNKNOWN = "licence unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """One image that edkit brought into the folder, and what is owed for it."""

    image: str  # relative to the folder, with "/"; of a shard "00000.tar/000000012"
    title: str  # its caption when it was fetched
    author: str
    licence: str  # "CC BY-SA 2.0", or as its table wrote it; "" where nobody said
    licence_url: str
    page: str  # where it is shown, else its address
    sha256: str
    changed: bool = False  # found by its name: its content is no longer what was fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Credits:
    """The attribution list of a folder, grouped by licence."""

    root: Path
    credits: tuple[Credit, ...]  # by licence, the unknown ones last, then by image
    licences: Mapping[str, int]  # licence -> images, in that order
    num_unknown: int  # images that edkit fetched without word of a licence
    foreign: tuple[str, ...]  # images edkit did not bring: it knows nothing of them
    unreadable: tuple[tuple[str, str], ...]  # (image, why)
    written: Path | None


def credits(
    root: Path,
    *,
    out: Path | None = None,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Credits:
    """List every image below `root` that edkit fetched or imported, with author, licence and source.

    Images are known by their content, so renamed and moved ones are found, and what a person removed is left
    out; one that edkit itself resized or converted counts as the picture it was made from. `out` is written
    as Markdown, or by its ending .csv, .json or .html. Raises BadInput, UsageError (another ending).
    """
    render = None if out is None else _renderer(out)
    root = Path(os.path.abspath(root))  # noqa: PTH100 - lexically, as the catalog does
    if not root.is_dir():
        raise BadInput("no such folder", where=str(root))
    with opened(root, state_dir, write=False) as catalog:
        images, tars = _files(root)
        found, foreign, unreadable = _of_images(catalog, root, images, progress)
        for tar in tars:
            found += [_credit(f"{_short(tar, root)}/{_shard_key(row)}", row) for row in _kept_in(catalog, tar)]
    found.sort(key=lambda credit: (not credit.licence, credit.licence.casefold(), credit.image))
    licences: dict[str, int] = {}
    for credit in found:
        name = credit.licence or UNKNOWN
        licences[name] = licences.get(name, 0) + 1
    result = Credits(
        root=root,
        credits=tuple(found),
        licences=licences,
        num_unknown=licences.get(UNKNOWN, 0),
        foreign=tuple(foreign),
        unreadable=tuple(unreadable),
        written=out,
    )
    if out is not None and render is not None:
        write_text(out, render(result))
    return result


# ---- finding


def _files(root: Path) -> tuple[list[Path], list[Path]]:
    """The images and the tar shards below a folder, sorted."""
    images: list[Path] = []
    tars: list[Path] = []
    for _, listing in walk(str(root)):
        images += [Path(listing.path, name) for name in listing.images]
        tars += [Path(listing.path, name) for name, _ in listing.skipped if name.lower().endswith(".tar")]
    return images, tars


def _of_images(
    catalog: Catalog, root: Path, images: Sequence[Path], progress: Progress
) -> tuple[list[Credit], list[str], list[tuple[str, str]]]:
    ids = catalog.content_ids(images, progress=progress)
    origins = catalog.origins(id for id in ids.values() if not isinstance(id, Unreadable))
    rows = catalog.ledger_holding(set(origins.values()))
    found: list[Credit] = []
    foreign: list[str] = []
    unreadable: list[tuple[str, str]] = []
    for path in images:
        image, id = _short(path, root), ids[path]
        if isinstance(id, Unreadable):
            unreadable.append((image, str(id)))
            continue
        # the first that named it: the same picture may stand in several tables, some silent on its licence
        known = rows.get(origins[id], [])
        row = next((row for row in known if row.licence), known[0] if known else None)
        if row is not None:
            found.append(_credit(image, row))
            continue
        named = _by_name(catalog, path)
        if named is None:
            foreign.append(image)
        else:
            found.append(_credit(image, named, changed=True))
    return found, foreign, unreadable


def _by_name(catalog: Catalog, path: Path) -> LedgerRow | None:
    """The fetch of a file that was changed since by another's hand: by its name, or the one it was fetched under."""
    name = path
    for _ in range(20):
        row = next(catalog.ledger(path=name, outcome="ok"), None)
        if row is not None:
            return row
        came = catalog.site().rows(
            f"dst = ? AND kind = 'move' AND step = {DONE} AND NOT undone AND {TOLD}", [catalog.places.key(name)]
        )
        if not came or came[-1].src is None:
            return None
        name = Path(came[-1].src)
    return None


def _kept_in(catalog: Catalog, tar: Path) -> list[LedgerRow]:
    return list(catalog.ledger(path=tar, outcome="ok"))


def _shard_key(row: LedgerRow) -> str:
    return str((row.extra or {}).get("shard_key", ""))


def _credit(image: str, row: LedgerRow, *, changed: bool = False) -> Credit:
    licence, licence_url = licence_title(row.licence or "")
    extra = row.extra or {}
    url = row.url or ""
    page = str(extra.get("page") or (url if url.startswith(("http://", "https://")) else "") or row.source or "")
    return Credit(
        image=image,
        title=str(extra.get("title") or row.caption or ""),
        author=row.author or "",
        licence=licence,
        licence_url=licence_url,
        page=page,
        sha256=row.sha256 or "",
        changed=changed,
    )


def licence_title(text: str) -> tuple[str, str]:
    """A licence's name as people write it, and its address: ("CC BY-SA 2.0", "https://creativecommons.org/...").

    Anything but Creative Commons stays as it is.
    """
    text = text.strip()
    address = text if text.startswith(("http://", "https://")) else ""
    name = licence_name(text)
    match = re.fullmatch(r"(cc-(by(?:-nc)?(?:-nd|-sa)?)|cc0|pdm)(?:-v?([\d.]+))?", name)
    if not match:
        return text, address
    version = match[3] or ""
    if match[1] in ("cc0", "pdm"):
        title = "CC0" if match[1] == "cc0" else "Public Domain Mark"
        kind = "zero" if match[1] == "cc0" else "mark"
        default = f"https://creativecommons.org/publicdomain/{kind}/{version or '1.0'}/"
    else:
        title = f"CC {match[2].upper()}"
        default = f"https://creativecommons.org/licenses/{match[2]}/{version}/" if version else ""
    return f"{title} {version}".strip(), address or default


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


# ---- writing


def _renderer(out: Path) -> Callable[[Credits], str]:
    known = {".md": markdown, ".markdown": markdown, "": markdown, ".csv": _csv, ".json": _json, ".html": _html}
    render = known.get(out.suffix.lower())
    if render is None:
        raise UsageError(f"--out {out}: .md, .csv, .json or .html")
    return render


def markdown(result: Credits) -> str:
    """The list as Markdown: a section a licence, a line an image."""
    lines = ["# Credits", "", _counted(result), ""]
    group = None
    for credit in result.credits:
        name = credit.licence or UNKNOWN
        if name != group:
            group = name
            head = f"[{_md(name)}]({_link(credit.licence_url)})" if credit.licence_url else _md(name)
            lines += [*([""] if lines[-1] else []), f"## {head}", ""]
        by = f" by {_md(credit.author)}" if credit.author else ""
        title = _md(credit.title) or _md(credit.image)
        title = f"[{title}]({_link(credit.page)})" if credit.page.startswith("http") else title
        source = "" if credit.page.startswith("http") or not credit.page else f", from {_md(credit.page)}"
        changed = " (changed since)" if credit.changed else ""
        lines.append(f"- {title}{by}{source} - `{credit.image.replace('`', chr(39))}`{changed}")
    if result.foreign:
        lines += ["", "## Not brought by edkit", ""]
        lines += [f"- `{image.replace('`', chr(39))}`" for image in result.foreign]
    return "\n".join(lines) + "\n"


def _counted(result: Credits) -> str:
    parts = [f"{len(result.credits):,} image{'' if len(result.credits) == 1 else 's'}"]
    if result.num_unknown:
        parts.append(f"{result.num_unknown:,} of them without a known licence")
    if result.foreign:
        parts.append(f"and {len(result.foreign):,} that edkit did not bring")
    return ", ".join(parts) + "."


def _md(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))


def _link(url: str) -> str:
    return re.sub(r"[()\s<>]", lambda m: f"%{ord(m[0]):02X}", url)


_COLUMNS = ("image", "title", "author", "licence", "licence_url", "page", "sha256", "changed")


def _csv(result: Credits) -> str:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows([getattr(credit, name) for name in _COLUMNS] for credit in result.credits)
    writer.writerows([image, *[""] * (len(_COLUMNS) - 1)] for image in result.foreign)
    return file.getvalue()


def _json(result: Credits) -> str:
    listed = {
        "licences": dict(result.licences),
        "credits": [asdict(credit) for credit in result.credits],
        "not_brought_by_edkit": list(result.foreign),
    }
    return json.dumps(listed, ensure_ascii=False, indent=1) + "\n"


def _html(result: Credits) -> str:
    from edkit.page.html import Html, tag
    from edkit.page.layout import render, section

    sections: list[Html] = []
    for name in result.licences:
        group = [credit for credit in result.credits if (credit.licence or UNKNOWN) == name]
        sections.append(section(name, tag("ul", *(_html_line(credit) for credit in group)), note=_licence_note(group)))
    if result.foreign:
        sections.append(
            section("Not brought by edkit", tag("ul", *(tag("li", tag("code", image)) for image in result.foreign)))
        )
    return str(render("Credits", *sections, lead=_counted(result)))


def _licence_note(group: Sequence[Credit]) -> str:
    images = f"{len(group):,} image{'' if len(group) == 1 else 's'}"
    return f"{images}, under {group[0].licence_url}" if group[0].licence_url else f"{images}"


def _html_line(credit: Credit) -> object:
    from edkit.page.html import tag

    is_link = credit.page.startswith(("http://", "https://"))
    title = credit.title or credit.image
    return tag(
        "li",
        tag("a", title, href=credit.page) if is_link else title,
        f" by {credit.author}" if credit.author else "",
        f", from {credit.page}" if credit.page and not is_link else "",
        " ",
        tag("code", credit.image),
        " (changed since)" if credit.changed else "",
    )
