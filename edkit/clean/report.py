"""`report`: one page that shows a whole data root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edkit import nano
from edkit.clean.files import open_catalog
from edkit.clean.report_page import write_page
from edkit.clean.survey import survey
from edkit.data.errors import BadInput, UsageError
from edkit.data.progress import SILENT, Progress
from edkit.measure.families import family as family_of

MAX_THUMBNAILS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """The page that `report` wrote, and what it counts."""

    page: Path
    num_bytes: int  # of the page
    num_images: int
    num_thumbnails: int  # on its contact sheets; fewer than images where there are too many
    num_folders: int
    num_broken: int
    num_groups: int  # of near-duplicates
    num_shared: int  # images of the other folder that show what one of these shows
    num_removed: int  # images set aside
    num_cut_captions: int
    picks: float  # an epoch, on average
    notes: tuple[str, ...]


def report(
    root: Path,
    *,
    out: Path,
    family: str | None = None,
    resolution: int | None = None,
    overlap: Path | None = None,
    caption_fallback: str | None = None,
    radius: int = 8,
    thumbnails: int = MAX_THUMBNAILS,
    workers: int | None = None,
    state_dir: Path | None = None,
    progress: Progress = SILENT,
) -> Reported:
    """Write one self-contained page about a data root; changes nothing else.

    Folders and balance, sizes against the buckets of `family`, caption lengths, words, every known fact with
    its lowest and highest pictures, near-duplicates within `radius`, what another folder (`overlap`) shows too,
    what was set aside and why, licences and authors, and up to `thumbnails` small pictures that open their files.
    Raises BadInput where there is no image.
    """
    target = None if family is None else family_of(nano.model_dir() if family == "nano" else family)
    if resolution is None and target is not None:
        resolution = target.resolution
    if not 0 <= radius <= 31:
        raise UsageError(f"--radius {radius} is not in 0..31")
    if thumbnails < 0:
        raise UsageError(f"{thumbnails} thumbnails can't be drawn", where="--thumbnails", mend="give 0 or more")
    root = Path(root)
    shared = None
    if overlap is not None:
        from edkit.clean.overlap import overlap as overlapping

        # before our own catalog is open: both folders may have one state
        shared = overlapping(root, overlap, radius=radius, workers=workers, state_dir=state_dir, progress=progress)
    with open_catalog(
        root, state_dir=state_dir, changes=False, finish=True, command="report", progress=progress
    ) as catalog:
        found = survey(
            catalog,
            root,
            target=target,
            resolution=resolution,
            radius=radius,
            overlap=shared,
            overlap_with=overlap,
            caption_fallback=caption_fallback,
            num_previews=thumbnails,
            workers=workers,
            progress=progress,
        )
    if not found.paths:
        raise BadInput("no images in it", where=str(root))
    page = write_page(found, out, progress=progress)
    return Reported(
        page=page,
        num_bytes=page.stat().st_size,
        num_images=len(found.dataset),
        num_thumbnails=sum(data is not None for data in found.previews.values()),
        num_folders=len(found.folders),
        num_broken=len(found.broken),
        num_groups=len(found.groups),
        num_shared=len(shared.shared) if shared else 0,
        num_removed=len(found.removed),
        num_cut_captions=len(found.cut),
        picks=sum(folder.picks for folder in found.folders),
        notes=found.notes,
    )
