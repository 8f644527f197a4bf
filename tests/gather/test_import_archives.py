"""Tar shards come in as streams; whatever a hostile archive tries ends as an outcome, and writes nothing outside."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edkit.data.catalog import Catalog, LedgerRow
from edkit.data.dataset import read
from edkit.data.errors import UsageError
from edkit.gather import archives
from edkit.gather.archives import Fault, Sample, samples, split_name
from edkit.gather.webdataset import expand_braces, import_webdataset


def jpeg(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A small JPEG that no other seed gives."""
    out = io.BytesIO()
    Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, seed // 7 % 256)).save(out, "JPEG", comment=str(seed))
    return out.getvalue()


Members = list[tuple[str | tarfile.TarInfo, bytes]]


def tar(members: Members, *, format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        for member, data in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            if info.isreg() or info.type == tarfile.GNUTYPE_SPARSE:
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def shard(n: int, start: int = 0) -> Members:
    found: Members = []
    for i in range(start, start + n):
        found += [(f"{i:05d}.jpg", jpeg(i)), (f"{i:05d}.txt", f"a photo of number {i}".encode())]
    return found


def captions(out: Path) -> list[str]:
    return sorted(sample.caption.text for sample in read(out))


def ledger(out: Path) -> list[LedgerRow]:
    with Catalog.open(out, write=False) as catalog:
        return list(catalog.ledger())


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


# ---- good shards


def test_text_json_and_caption_files_give_captions_and_json_the_rest(tmp_path: Path) -> None:
    meta = {
        "url": "https://a.example/2.jpg",
        "caption": "from the json",
        "license": "CC0",
        "creator": "Ann",
        "llava": "a long one",
    }
    members: Members = [
        *[("a/0.jpg", jpeg(0)), ("a/0.txt", b"a dog, sunny\n")],
        *[("a/1.PNG", png()), ("a/1.caption", "öl_farbe / rot".encode()), ("a/1.txt", b"weaker")],
        *[("a/2.jpg", jpeg(2)), ("a/2.json", json.dumps(meta).encode())],
        *[("a/3.seg.png", png()), ("a/3.jpg", jpeg(3)), ("a/3.cls", b"7"), ("a/3.txt", b"three")],
    ]
    (tmp_path / "s.tar").write_bytes(tar(members))
    result = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out", licence="unknown")
    assert (result.kept, result.rows_read) == (4, 4)
    assert captions(tmp_path / "out") == ["a dog, sunny", "from the json", "three", "öl_farbe / rot"]
    row = next(row for row in ledger(tmp_path / "out") if row.caption == "from the json")
    assert (row.url, row.licence, row.author) == ("https://a.example/2.jpg", "CC0", "Ann")
    assert {r.licence for r in ledger(tmp_path / "out")} == {"CC0", "unknown"}
    other = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "other", caption_key="llava")
    assert other.kept == 4 and "a long one" in captions(tmp_path / "other")


def test_half_a_character_or_a_control_character_in_a_caption_is_left_out(tmp_path: Path) -> None:
    metas = [
        {"caption": "a dog \ud83d"},  # cut in the middle of an emoji
        {"caption": "a \x00 cat\x07, red", "author": "Ann\udc00"},
        {"caption": "a bird", "url": "https://a.example/\ud800.jpg"},
        {"caption": "\x00\udc00"},
    ]
    members: Members = []
    for i, meta in enumerate(metas):
        members += [(f"{i}.jpg", jpeg(i)), (f"{i}.json", json.dumps(meta).encode())]
    (tmp_path / "s.tar").write_bytes(tar(members))
    result = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out")
    assert result.outcomes == {"ok": 3, "no-caption": 1}
    assert captions(tmp_path / "out") == ["a  cat, red", "a bird", "a dog"]
    assert {row.author for row in ledger(tmp_path / "out")} == {None, "Ann"}


def png() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 30), 60).save(out, "PNG")
    return out.getvalue()


def test_folders_patterns_braces_and_packed_shards_are_read_in_order(tmp_path: Path) -> None:
    plain = [tar(shard(3, 3 * i)) for i in range(3)]
    (tmp_path / "s-000.tar").write_bytes(plain[0])
    (tmp_path / "s-001.tar.gz").write_bytes(gzip.compress(plain[1]))
    import bz2
    import lzma

    (tmp_path / "s-002.tar.bz2").write_bytes(bz2.compress(plain[2]))
    (tmp_path / "s-003.tar.xz").write_bytes(lzma.compress(tar(shard(3, 9))))
    by_folder = import_webdataset([tmp_path], out=tmp_path.parent / f"{tmp_path.name}-a")
    by_glob = import_webdataset([str(tmp_path / "s-*")], out=tmp_path.parent / f"{tmp_path.name}-b")
    assert by_folder.kept == by_glob.kept == 12 and not by_folder.failed
    rows = ledger(by_folder.out)
    assert [row.caption for row in rows] == [f"a photo of number {i}" for i in range(12)]
    assert expand_braces("a-{008..010}.{tar,tgz}") == [
        *("a-008.tar", "a-008.tgz", "a-009.tar", "a-009.tgz"),
        *("a-010.tar", "a-010.tgz"),
    ]
    for wrong in ("s-9.tar", "pipe:cat x.tar", "https://a.example/x.tar"):
        with pytest.raises(UsageError):
            import_webdataset([wrong], out=tmp_path / "out")


def test_a_pipe_will_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edkit", "import", "webdataset", "-", "--out", "out", "--json"]
    done = subprocess.run(command, input=tar(shard(5)), cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] == 5
    again = subprocess.run(command, input=tar(shard(7)), cwd=tmp_path, capture_output=True, check=False)
    told = json.loads(again.stdout)
    assert told["kept"] == 2 and told["skipped"] == {"kept before": 5}


def test_a_limit_takes_the_first_good_ones_over_all_runs(tmp_path: Path) -> None:
    members = shard(20)
    members[6] = ("00003.jpg", jpeg(3)[:200])
    (tmp_path / "s.tar").write_bytes(tar(members))
    first = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out", limit=5)
    assert first.kept == 5 and first.outcomes == {"ok": 5, "broken-image": 1}
    assert captions(tmp_path / "out") == [f"a photo of number {i}" for i in (0, 1, 2, 4, 5)]
    assert import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out", limit=5).kept == 0
    more = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out", limit=9)
    assert more.kept == 4 and more.total == 9


def test_a_dry_run_says_what_it_would_do_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar([*shard(3), ("9.jpg", jpeg(9))]))
    result = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out", dry_run=True)
    assert result.matched == 4 and result.kept == 0 and result.outcomes == {"no-caption": 1}
    assert result.planned[0] == ("s.tar: 00000", "a photo of number 0") and not (tmp_path / "out").exists()


# ---- hostile ones

GOOD = shard(2)
HOSTILE: dict[str, tuple[Callable[[], bytes], str, int]] = {
    "absolute name": (lambda: tar([("/tmp/evil.jpg", jpeg(9)), *GOOD]), "unsafe-name", 2),
    "dot dot": (lambda: tar([("a/../../evil.jpg", jpeg(9)), *GOOD]), "unsafe-name", 2),
    "backslashes": (lambda: tar([("..\\..\\evil.jpg", jpeg(9)), *GOOD]), "unsafe-name", 2),
    "drive letter": (lambda: tar([("C:evil.jpg", jpeg(9)), *GOOD]), "unsafe-name", 2),
    "symbolic link": (lambda: tar([(special("9.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), *GOOD]), "link-member", 2),
    "hard link": (lambda: tar([(special("9.jpg", tarfile.LNKTYPE, "../../x"), b""), *GOOD]), "link-member", 2),
    "device": (lambda: tar([(special("9.jpg", tarfile.CHRTYPE), b""), *GOOD]), "device-member", 2),
    "pipe": (lambda: tar([(special("9.jpg", tarfile.FIFOTYPE), b""), *GOOD]), "device-member", 2),
    "unknown kind": (lambda: tar([(special("9.jpg", b"Z"), b""), *GOOD]), "odd-member", 2),
    "GNU sparse": (lambda: tar([(special("9.jpg", tarfile.GNUTYPE_SPARSE), b"x" * 512), *GOOD]), "sparse-member", 2),
    "pax sparse": (lambda: pax_sparse(), "sparse-member", 2),
    "same name twice": (lambda: tar([*GOOD[:1], ("00000.jpg", jpeg(7)), *GOOD[1:]]), "duplicate-member", 2),
    "text without image": (lambda: tar([*GOOD, ("9.txt", b"alone")]), "no-image", 2),
    "image without text": (lambda: tar([*GOOD, ("9.jpg", jpeg(9))]), "no-caption", 2),
    "web page as image": (lambda: tar([*GOOD, ("9.jpg", b"<html>no"), ("9.txt", b"x")]), "not-an-image", 2),
    "empty image": (lambda: tar([*GOOD, ("9.jpg", b""), ("9.txt", b"x")]), "empty", 2),
    "binary caption": (lambda: tar([*GOOD, ("9.jpg", jpeg(9)), ("9.txt", b"\xff\xfe\xfd\x00\x01")]), "bad-caption", 2),
    "caption that is no JSON": (lambda: tar([*GOOD, ("9.jpg", jpeg(9)), ("9.json", b"{")]), "bad-caption", 2),
    "deep JSON": (lambda: tar([*GOOD, ("9.jpg", jpeg(9)), ("9.json", b"[" * 400_000)]), "bad-caption", 2),
    "huge caption": (lambda: tar([*GOOD, ("9.jpg", jpeg(9)), ("9.txt", b"x" * (2 << 20))]), "too-large", 2),
    "cut in a file": (lambda: tar(shard(4))[: len_of(shard(3)) + 700], "truncated-archive", 3),
    "cut in a header": (lambda: tar(GOOD)[: len_of(GOOD[:2]) + 10], "truncated-archive", 0),
    "no tar at all": (lambda: b"PK\3\4" + bytes(range(256)) * 8, "broken-archive", 0),
    "damaged header": (lambda: tar(GOOD)[: len_of(GOOD)] + b"\xaa" * 1024, "broken-archive", 1),
    "long name without end": (lambda: endless_name(), "broken-archive", 0),
    "pax header that lies": (lambda: lying_pax(), "broken-archive", 0),
    "header upon header": (lambda: header_chain(), "broken-archive", 0),
    "gzip cut short": (lambda: gzip.compress(tar(shard(400)), 1)[:-5000], "truncated-archive", -1),
    "gzip that is none": (lambda: b"\x1f\x8b\x08\0" + b"\xaa" * 4000, "broken-archive", 0),
    "zstd": (lambda: b"\x28\xb5\x2f\xfd" + bytes(600), "broken-archive", 0),
    "gzip bomb": (lambda: bomb(), "broken-archive", 2),
}  # fmt: skip


def pax_sparse() -> bytes:
    info = tarfile.TarInfo("9.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 50)}
    return tar([(info, b"0\n" + bytes(510)), *GOOD], format=tarfile.PAX_FORMAT)


def endless_name() -> bytes:
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(4096)


def lying_pax() -> bytes:
    info = special("pax", tarfile.XHDTYPE)
    info.size = 20
    return info.tobuf(tarfile.USTAR_FORMAT) + b"999999999 path=x\n\0\0\0".ljust(512, b"\0") + tar(GOOD)


def header_chain() -> bytes:
    info = special("././@LongLink", tarfile.GNUTYPE_LONGNAME)
    info.size = 5
    return (info.tobuf(tarfile.GNU_FORMAT) + b"a.jpg".ljust(512, b"\0")) * 1000 + tar(GOOD)


def bomb() -> bytes:
    info = tarfile.TarInfo("9.jpg")
    info.size = 1 << 40
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=9) as file:
        file.write(tar(GOOD)[: len_of(GOOD)])
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(24):
            file.write(bytes(1 << 20))
    return packed.getvalue()


def len_of(members: Members) -> int:
    return sum(512 + (len(data) + 511) // 512 * 512 for _, data in members)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_ends_as_an_outcome(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, code, kept = HOSTILE[name]
    monkeypatch.setattr(archives, "_BOMB_START", 8 << 20)
    place = tmp_path / "place"
    place.mkdir()
    (place / "s.tar").write_bytes(make())
    result = import_webdataset([place / "s.tar"], out=place / "out")
    assert result.outcomes.get(code) == 1, result.outcomes
    assert kept < 0 or result.kept == kept
    assert result.failed and not (place / "out" / ".incoming").exists()
    # nothing under a name of the archive, nothing outside --out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["place"]
    assert sorted(p.name for p in place.iterdir()) == ["out", "s.tar"]
    assert all(p.is_file() and not p.is_symlink() for p in (place / "out").rglob("*.*") if ".edkit" not in p.parts)
    assert len([p for p in (place / "out").iterdir() if p.suffix == ".jpg"]) == result.kept
    # told once in the ledger, however often it is run
    rows = len(ledger(place / "out"))
    import_webdataset([place / "s.tar"], out=place / "out")
    assert len(ledger(place / "out")) == rows


def test_names_that_differ_in_case_and_keys_that_come_back_are_samples_of_their_own(tmp_path: Path) -> None:
    members: Members = [
        *[("a.jpg", jpeg(1)), ("a.txt", b"same"), ("A.jpg", jpeg(2)), ("A.txt", b"Same")],
        *[("b.jpg", jpeg(3)), ("b.txt", b"b"), ("a.jpg", jpeg(4)), ("a.txt", b"back")],
    ]
    (tmp_path / "s.tar").write_bytes(tar(members))
    result = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out")
    assert result.kept == 4 and captions(tmp_path / "out") == ["Same", "b", "back", "same"]
    names = [p.name.casefold() for p in (tmp_path / "out").iterdir()]
    assert len(names) == len(set(names))


def test_a_huge_member_is_passed_over_without_being_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 100_000)
    (tmp_path / "s.tar").write_bytes(tar([("0.jpg", bytes(200_000)), ("0.txt", b"x"), *shard(1, 1)]))
    result = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out")
    assert result.outcomes == {"too-large": 1, "ok": 1}


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_odd_names_are_read_in_every_format(format: int, tmp_path: Path) -> None:
    name = f"{'d' * 90}/{'é' if format != tarfile.USTAR_FORMAT else 'e'}{'k' * 90}"
    if format != tarfile.USTAR_FORMAT:
        name = "x" * 120 + "/" + name
    data = tar([(f"{name}.jpg", jpeg(1)), (f"{name}.txt", b"long")], format=format)
    (sample,) = samples(io.BytesIO(data))
    assert isinstance(sample, Sample) and sample.key == name and sample.texts == {"txt": b"long"}


# ---- properties

keys = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters="_- "), min_size=1, max_size=8)
endings = st.sampled_from(["jpg", "png", "txt", "json", "caption", "seg.png", "cls", "npy"])


@given(st.lists(st.tuples(keys, endings), max_size=30))
@settings(max_examples=150, deadline=None)
def test_consecutive_members_of_one_key_are_one_sample(names: list[tuple[str, str]]) -> None:
    data = tar([(f"{key}.{ending}", f"{i}".encode()) for i, (key, ending) in enumerate(names)])
    runs: list[tuple[str, dict[str, bytes]]] = []
    for i, (key, ending) in enumerate(names):
        if not runs or runs[-1][0] != key:
            runs.append((key, {}))
        runs[-1][1].setdefault(ending, f"{i}".encode())  # the first counts
    found = [sample for sample in samples(io.BytesIO(data)) if isinstance(sample, Sample)]
    assert [sample.key for sample in found] == [key for key, _ in runs]
    for sample, (_, members) in zip(found, runs, strict=True):
        assert sample.texts == {k: v for k, v in members.items() if k in ("txt", "json", "caption")}
        images = [e for e in ("jpg", "png") if e in members]
        assert sample.ending == (images[0] if images else "")
        assert sample.image == (members[images[0]] if images else b"")


@given(st.binary(max_size=3000), st.booleans())
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_fail(noise: bytes, behind: bool) -> None:
    data = tar(shard(1))[: -(tarfile.RECORDSIZE // 2)] + noise if behind else noise
    for found in samples(io.BytesIO(data)):
        assert isinstance(found, Sample | Fault)


@given(st.text(max_size=30))
def test_a_key_and_its_ending_make_the_name(name: str) -> None:
    key, ending = split_name(name)
    if ending:
        rest = name
        while rest.startswith("./"):
            rest = rest[2:]
        assert rest.lower() == f"{key}.{ending}".lower() or rest == f"{key}.{rest[len(key) + 1 :]}"
        assert "." not in key.rpartition("/")[2] and "/" not in ending


# ---- killed


def test_killed_again_and_again_the_folder_is_as_if_it_had_not_been(tmp_path: Path) -> None:
    members = shard(300)
    members[40] = ("00020.jpg", jpeg(20)[:300])
    members[80:80] = [("00001.jpg", jpeg(1)), ("00001.txt", b"a copy")]
    (tmp_path / "s.tar").write_bytes(tar(members))
    whole = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "whole")
    script = (
        "import sys, os, threading, time; from pathlib import Path\n"
        "from edkit.gather import local, place; local._BATCH = 16\n"
        "from edkit.gather.webdataset import import_webdataset\n"
        "real, calls, when, delay = place.rename_new, 0, int(sys.argv[1]), float(sys.argv[2])\n"
        "def die(): time.sleep(delay); os.kill(os.getpid(), 9)\n"
        "def rename(src, dst):\n"
        "    global calls; calls += 1\n"
        "    if calls == when: threading.Thread(target=die, daemon=True).start()\n"
        "    if calls == when + 20: os.kill(os.getpid(), 9)\n"
        "    real(src, dst)\n"
        "place.rename_new = rename\n"
        "import_webdataset(['s.tar'], out=Path('killed'))\n"
    )
    # at a drawn file, and a moment later (some files later at most, where the machine is too busy to wake the thread):
    # between two files, in the ledger, in the next batch's staging
    for when, delay in ((1, 0.0), (16, 0.002), (23, 0.005), (40, 0.01), (17, 0.0)):
        command = [sys.executable, "-c", script, str(when), str(delay)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == -9, done.stderr
    last = import_webdataset([tmp_path / "s.tar"], out=tmp_path / "killed")
    assert last.total == whole.total == 299
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def contents(out: Path) -> dict[str, bytes]:
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and ".edkit" not in p.parts
    }


def test_ctrl_c_leaves_a_state_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(shard(300)))
    script = (
        "import _thread; from pathlib import Path\n"
        "from edkit.gather import local, place; local._BATCH = 16\n"
        "from edkit.gather.webdataset import import_webdataset\n"
        "real, calls = place.rename_new, 0\n"
        "def rename(src, dst):\n"
        "    global calls; calls += 1\n"
        "    if calls == 70: _thread.interrupt_main()\n"
        "    real(src, dst)\n"
        "place.rename_new = rename\n"
        "import_webdataset(['s.tar'], out=Path('out'))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode != 0 and b"KeyboardInterrupt" in done.stderr
    assert import_webdataset([tmp_path / "s.tar"], out=tmp_path / "out").total == 300
    assert captions(tmp_path / "out") == sorted(f"a photo of number {i}" for i in range(300))
