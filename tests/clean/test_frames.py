"""Stills come out of videos sharp, once each, with their source; odd files are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

av = pytest.importorskip("av")

from edkit.clean.files import list_images  # noqa: E402
from edkit.clean.frames import Framed, frames  # noqa: E402
from edkit.data.errors import UsageError  # noqa: E402
from edkit.data.journal import undo, why  # noqa: E402

Film = Callable[..., Path]
RATE = 10  # frames a second


def scene(seed: int, size: tuple[int, int] = (192, 144)) -> Image.Image:
    rng = np.random.default_rng(seed)
    cells = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = Image.fromarray(rng.integers(0, 256, (size[1] // 2, size[0] // 2, 3), dtype=np.uint8)).resize(size)
    return Image.blend(cells, grain, 0.25)


@pytest.fixture
def film(tmp_path: Path) -> Film:
    """Writes a video of the given pictures, one a frame."""

    def written(name: str, pictures: list[Image.Image], turn: int | None = None) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=RATE)
            stream.width, stream.height = pictures[0].size
            stream.pix_fmt = "yuv420p"
            stream.bit_rate = 4_000_000
            if turn is not None:
                stream.metadata["rotate"] = str(turn)
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
            container.mux(stream.encode())
        return path

    return written


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir() if path.is_file())


def times(result: Framed) -> list[float]:
    return [round(one.time, 2) for one in result.frames]


def test_the_sharpest_frame_of_every_second_is_taken(tmp_path: Path, film: Film) -> None:
    pictures = []
    for second in range(3):
        clear = scene(second)
        blurred = clear.filter(ImageFilter.GaussianBlur(4))
        pictures += [clear if i == 3 + second else blurred for i in range(RATE)]
    result = frames(film("clip.mp4", pictures), tmp_path / "out", caption="person")
    assert names(tmp_path / "out") == ["person_(1).jpg", "person_(2).jpg", "person_(3).jpg"]
    assert times(result) == [0.3, 1.4, 2.5]
    assert result.num_decoded == 30
    with Image.open(tmp_path / "out" / "person_(2).jpg") as im:
        difference = np.asarray(im, dtype=float) - np.asarray(scene(1), dtype=float)
    assert float(np.abs(difference).mean()) < 12


def test_near_duplicates_within_a_video_are_left_out(tmp_path: Path, film: Film) -> None:
    pictures = [scene(0)] * (3 * RATE) + [scene(1)] * RATE + [scene(0)] * RATE
    result = frames(film("a dog.mp4", pictures), tmp_path / "out")
    assert names(tmp_path / "out") == ["a dog_(1).jpg", "a dog_(2).jpg"]
    assert result.num_duplicates == 3


def test_scenes_give_one_frame_each(tmp_path: Path, film: Film) -> None:
    pictures = [scene(0)] * 7 + [scene(1)] * 18 + [scene(2)] * 5
    result = frames(film("a dog.mp4", pictures), tmp_path / "out", scenes=True)
    assert len(result.frames) == 3
    first, second, third = times(result)
    assert first < 0.7 <= second < 2.5 <= third


def test_source_and_time_are_remembered_and_undo_takes_all_back(tmp_path: Path, film: Film) -> None:
    video = film("clip.mp4", [scene(i // RATE) for i in range(2 * RATE)])
    out = tmp_path / "out"
    result = frames(video, out, caption="a dog: low_tide")
    assert len(names(out)) == 4  # the caption can't be a name: it stands in sidecars
    told = why(result.frames[1].path).sentences
    assert any(f"frame from {video}" in one and "at 1." in one for one in told)
    assert any("frame of clip.mp4 at 1." in one for one in told)
    undo(out)
    assert names(out) == []
    assert len(frames(video, out, caption="a dog").frames) == 2


def test_what_undo_leaves_in_a_visible_state_folder_is_no_image_of_the_set(tmp_path: Path, film: Film) -> None:
    out, state = tmp_path / "out", tmp_path / "out" / "state"
    frames(film("clip.mp4", [scene(0)] * RATE), out, state_dir=state)
    assert len(list_images([out]).images) == 1
    undo(out, state_dir=state)
    assert list_images([out]).images == ()


def test_a_second_run_adds_only_what_is_not_there(tmp_path: Path, film: Film) -> None:
    video = film("clip.mp4", [scene(i // RATE) for i in range(2 * RATE)])
    out = tmp_path / "out"
    frames(video, out, caption="person")
    again = frames(video, out, caption="person")
    assert (again.frames, again.num_known, again.operation) == ((), 2, None)
    (out / "person_(1).jpg").unlink()
    assert [one.path.name for one in frames(video, out, caption="person").frames] == ["person_(1).jpg"]


def test_start_end_limit_and_sharpness_narrow_it_down(tmp_path: Path, film: Film) -> None:
    video = film("clip.mp4", [scene(i // RATE) for i in range(5 * RATE)])
    assert len(frames(video, tmp_path / "a", start=1.0, end=4.0, dry_run=True).frames) == 3
    assert len(frames(video, tmp_path / "a", limit=2, dry_run=True).frames) == 2
    assert len(frames(video, tmp_path / "a", every=2.0, dry_run=True).frames) == 3
    assert frames(video, tmp_path / "a", min_sharpness=1.0, dry_run=True).frames == ()
    assert not (tmp_path / "a").exists()


def test_hostile_and_broken_videos_are_one_line_each(tmp_path: Path, film: Film) -> None:
    good = film("good.mp4", [scene(i // RATE) for i in range(3 * RATE)])
    data = good.read_bytes()
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "good.mp4").write_bytes(data)
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video", encoding="utf-8")
    (folder / "page.mkv").write_text("<html>", encoding="utf-8")
    (folder / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n", encoding="utf-8")
    (folder / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {good}\n", encoding="utf-8")
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    mangled = bytearray(data)
    mangled[len(data) // 3 : len(data) // 3 + 400] = b"\xff" * 400
    (folder / "mangled.mp4").write_bytes(mangled)
    result = frames(folder, tmp_path / "out", caption="person", workers=1)
    told = {Path(one.where).name: str(one) for one in result.broken}
    assert {"empty.mp4", "text.mp4", "page.mkv", "list.mp4", "concat.mp4"} <= set(told)
    assert all("\n" not in line and len(line) < 300 for line in told.values())
    assert {one.video.name for one in result.frames} <= {"good.mp4", "cut.mp4", "mangled.mp4"}
    assert sum(one.video.name == "good.mp4" for one in result.frames) == 3


def test_several_videos_are_spread_over_processes(tmp_path: Path, film: Film) -> None:
    videos = [film(f"{seed}.mp4", [scene(seed)] * RATE) for seed in range(8)]
    result = frames(videos, tmp_path / "out", caption="person", workers=2)
    assert [one.video.name for one in result.frames] == [video.name for video in videos]


@pytest.mark.parametrize("options", [{"every": 0.0}, {"start": 3.0, "end": 2.0}, {"limit": 0}, {"radius": 99}])
def test_wrong_settings_are_told(tmp_path: Path, film: Film, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        frames(film("clip.mp4", [scene(0)] * 3), tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no such video"):
        frames(tmp_path / "none.mp4", tmp_path / "out")
