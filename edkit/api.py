"""Every command as a plain function, for notebooks and scripts.

    from edkit.api import dedupe, undo

    result = dedupe(["photos"], radius=8, dry_run=True)
    for group in result.groups:
        print(group.kept, group.dropped)

Each does what the command of its name does, takes the same options by keyword, and returns a frozen dataclass
of what it did and what it skipped. Failures are the classes of `edkit.data.errors`. A wing is imported when
one of its functions is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edkit.balance.balance import balance as balance
    from edkit.balance.pick_like import pick_like as pick_like
    from edkit.balance.plan import plan as plan
    from edkit.caption.auto import caption_auto as caption_auto
    from edkit.caption.edit import caption_edit as caption_edit
    from edkit.caption.move import caption_move as caption_move
    from edkit.caption.rename import rename_captions as rename_captions
    from edkit.caption.words import caption_words as caption_words
    from edkit.clean.aesthetic_filter import aesthetic_filter as aesthetic_filter
    from edkit.clean.check import check as check
    from edkit.clean.compress import compress as compress
    from edkit.clean.dedupe import dedupe as dedupe
    from edkit.clean.filter import filter as filter
    from edkit.clean.frames import frames as frames
    from edkit.clean.overlap import overlap as overlap
    from edkit.clean.report import report as report
    from edkit.data.journal import undo as undo
    from edkit.data.story import history as history
    from edkit.data.story import why as why
    from edkit.data.trash import contents as trash_list  # noqa: F401
    from edkit.data.trash import empty as trash_empty  # noqa: F401
    from edkit.demo import demo as demo
    from edkit.doctor import doctor as doctor
    from edkit.gather.coco import import_coco as import_coco
    from edkit.gather.credits import credits as credits
    from edkit.gather.ffhq import import_ffhq as import_ffhq
    from edkit.gather.folder import import_folder as import_folder
    from edkit.gather.hf import import_hf as import_hf
    from edkit.gather.img2dataset import import_img2dataset as import_img2dataset
    from edkit.gather.kohya import import_kohya as import_kohya
    from edkit.gather.scrape import scrape as scrape
    from edkit.gather.webdataset import import_webdataset as import_webdataset
    from edkit.prove.choose import choose as choose
    from edkit.prove.evaluate import evaluate as evaluate
    from edkit.train.convert import convert as convert
    from edkit.train.generate import generate as generate
    from edkit.train.initial import init_model as init_model
    from edkit.train.run import train as train
    from edkit.train.verify import verify as verify

_WHERE = {
    "scrape": "edkit.gather.scrape",
    "import_folder": "edkit.gather.folder",
    "import_coco": "edkit.gather.coco",
    "import_ffhq": "edkit.gather.ffhq",
    "import_img2dataset": "edkit.gather.img2dataset",
    "import_webdataset": "edkit.gather.webdataset",
    "import_kohya": "edkit.gather.kohya",
    "import_hf": "edkit.gather.hf",
    "credits": "edkit.gather.credits",
    "check": "edkit.clean.check",
    "report": "edkit.clean.report",
    "dedupe": "edkit.clean.dedupe",
    "overlap": "edkit.clean.overlap",
    "filter": "edkit.clean.filter",
    "compress": "edkit.clean.compress",
    "frames": "edkit.clean.frames",
    "aesthetic_filter": "edkit.clean.aesthetic_filter",
    "rename_captions": "edkit.caption.rename",
    "caption_move": "edkit.caption.move",
    "caption_edit": "edkit.caption.edit",
    "caption_words": "edkit.caption.words",
    "caption_auto": "edkit.caption.auto",
    "balance": "edkit.balance.balance",
    "pick_like": "edkit.balance.pick_like",
    "plan": "edkit.balance.plan",
    "evaluate": "edkit.prove.evaluate",
    "choose": "edkit.prove.choose",
    "train": "edkit.train.run",
    "generate": "edkit.train.generate",
    "convert": "edkit.train.convert",
    "init_model": "edkit.train.initial",
    "verify": "edkit.train.verify",
    "undo": "edkit.data.journal",
    "history": "edkit.data.story",
    "why": "edkit.data.story",
    "trash_list": "edkit.data.trash:contents",
    "trash_empty": "edkit.data.trash:empty",
    "demo": "edkit.demo",
    "doctor": "edkit.doctor",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module 'edkit.api' has no attribute {name!r}")
    module, _, function = _WHERE[name].partition(":")
    return getattr(import_module(module), function or name)


def __dir__() -> list[str]:
    return sorted(__all__)
