"""Opening images: safely, upright, in RGB."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from edkit.data.errors import BadInput
from edkit.data.image import Crop, TooManyPixels, is_image, load_crop, open_image, probe, suffix_for, verify


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Red left, blue right, a green bar on top and a little texture: no two edges are alike."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.where(x < width / 2, 200, 20) + (x * 7 + y * 13) % 16
    rgb[..., 2] = np.where(x < width / 2, 20, 200) + (x * 3 + y * 5) % 16
    rgb[: height // 4, :, 1] = 220
    return Image.fromarray(rgb)


def encoded(im: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    im.save(file, format, **options)
    return file.getvalue()


def stored(im: Image.Image, orientation: int) -> Image.Image:
    """How a camera stores `im` when it writes this EXIF orientation."""
    turn = Image.Transpose
    undo = {
        1: None,
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }[orientation]
    return im if undo is None else im.transpose(undo)


def same(a: Image.Image, b: Image.Image, tolerance: float = 6.0) -> bool:
    if a.size != b.size:
        return False
    difference = np.abs(np.asarray(a, np.float32) - np.asarray(b, np.float32))
    return float(difference.mean()) <= tolerance


def test_endings_count_whatever_their_case() -> None:
    assert is_image("a.JPG") and is_image(Path("x/b.jfif")) and is_image("c.heic")
    assert not is_image("a.txt") and not is_image("jpg") and not is_image("a.jpg.part")
    assert suffix_for("JPEG") == ".jpg" and suffix_for("webp") == ".webp"
    with pytest.raises(BadInput):
        suffix_for("PSD")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_comes_out_upright(format: str, orientation: int) -> None:
    picture = scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if format in ("JPEG", "WEBP", "AVIF") else {}
    data = encoded(stored(picture, orientation), format, exif=exif, **options)
    header = probe(data)
    assert (header.width, header.height) == picture.size
    assert same(open_image(data), picture)
    assert verify(data) == header


def test_an_exif_block_behind_the_pixels_of_a_png_turns_it_too() -> None:
    picture = scene()
    exif = Image.Exif()
    exif[0x0112] = 6
    plain, block = encoded(stored(picture, 6), "PNG"), exif.tobytes()[6:]
    chunk = b"eXIf" + block
    chunk = len(block).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    data = plain[:-12] + chunk + plain[-12:]
    assert (probe(data).width, probe(data).height) == picture.size
    assert same(open_image(data), picture)


def test_a_damaged_exif_block_does_not_make_a_photo_unreadable() -> None:
    data = encoded(scene(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage")
    assert probe(data).orientation == 1
    assert open_image(data).size == (96, 64)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_parts_lie_on_white_not_on_the_hidden_pixels(mode: str) -> None:
    im = Image.new("RGBA", (8, 4), (255, 0, 0, 0))
    im.paste((0, 0, 0, 255), (4, 0, 8, 4))
    data = encoded(im.convert(mode) if mode != "PA" else im.quantize(4), "PNG")
    out = open_image(data)
    assert out.mode == "RGB"
    assert out.getpixel((1, 1)) == (255, 255, 255) and out.getpixel((6, 1)) == (0, 0, 0)
    assert open_image(data, background=(0, 0, 255)).getpixel((1, 1)) == (0, 0, 255)


def test_a_transparent_colour_of_an_rgb_png_lies_on_white() -> None:
    im = Image.new("RGB", (4, 4), (255, 0, 255))
    assert open_image(encoded(im, "PNG", transparency=(255, 0, 255))).getpixel((0, 0)) == (255, 255, 255)


def test_half_transparent_parts_mix_with_the_background() -> None:
    data = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")
    assert open_image(data).getpixel((0, 0)) == pytest.approx((127, 127, 127), abs=1)


def test_sixteen_bit_grey_keeps_its_tones() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    for format in ("PNG", "TIFF"):
        out = np.asarray(open_image(encoded(Image.fromarray(ramp), format)))
        assert out.shape == (4, 256, 3)
        assert np.array_equal(out[0, :, 0], np.arange(256))


def test_float_tiffs_are_read_from_zero_to_one() -> None:
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(4, 0)
    assert np.array_equal(np.asarray(open_image(encoded(Image.fromarray(ramp), "TIFF")))[0, :, 1], np.arange(256))


def test_cmyk_and_palette_become_rgb() -> None:
    assert same(open_image(encoded(scene().convert("CMYK"), "JPEG", quality=95)), scene(), 8)
    assert same(open_image(encoded(scene().quantize(64), "GIF")), scene(), 12)
    assert probe(encoded(scene().convert("CMYK"), "JPEG")).mode == "CMYK"


def test_a_colour_profile_is_baked_in() -> None:
    # a profile whose red and green are swapped is as far from sRGB as a test can wish
    grey = Image.new("RGB", (8, 8), (120, 120, 120))
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert open_image(encoded(grey, "PNG", icc_profile=lab_like)).getpixel((0, 0)) == (120, 120, 120)
    assert open_image(encoded(grey, "PNG", icc_profile=b"no profile at all")).getpixel((0, 0)) == (
        120,
        120,
        120,
    )
    linear = _with_linear_curves(lab_like)
    out = open_image(encoded(grey, "PNG", icc_profile=linear)).getpixel((0, 0))
    # 120/255 in linear light is 0.47, which sRGB writes as 0.71 * 255
    assert out == pytest.approx((182, 182, 182), abs=2)


def test_photos_with_one_profile_come_out_the_same_in_every_thread() -> None:
    linear = _with_linear_curves(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    photos = [encoded(scene(160 + n, 120), "PNG", icc_profile=linear) for n in range(8)]
    alone = [open_image(photo).tobytes() for photo in photos]
    with ThreadPoolExecutor(4) as pool:
        assert [im.tobytes() for im in pool.map(open_image, photos * 8)] == alone * 8
    assert alone[0] != open_image(encoded(scene(160, 120), "PNG")).tobytes()


def _with_linear_curves(profile: bytes) -> bytes:
    """The profile with every tone curve made a gamma of 1, and without its name."""
    data = bytearray(profile)
    for i in range(int.from_bytes(data[128:132], "big")):
        entry = 132 + 12 * i
        tag, offset = bytes(data[entry : entry + 4]), int.from_bytes(data[entry + 4 : entry + 8], "big")
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            data[offset : offset + 12] = b"curv" + bytes(4) + (0).to_bytes(4, "big")
        if tag == b"desc":
            data = data.replace(b"s\0R\0G\0B", b"L\0i\0n\0e").replace(b"sRGB", b"Line")
    return bytes(data)


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for format in ("GIF", "WEBP"):
        data = encoded(
            frames[0],
            format,
            save_all=True,
            append_images=frames[1:],
            **({"lossless": True} if format == "WEBP" else {}),
        )
        assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_heic_from_phones_is_read() -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    data = encoded(scene(), "HEIF", quality=95)
    assert probe(data).format == "HEIF" and same(open_image(data), scene(), 8)


def test_draft_decoding_gives_no_side_below_the_one_asked_for() -> None:
    data = encoded(scene(800, 600), "JPEG", quality=95)
    assert open_image(data, at_least=(200, 150)).size == (200, 150)
    assert open_image(data, at_least=(201, 150)).size == (400, 300)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(scene(800, 600), "JPEG", exif=exif)
    assert open_image(turned, at_least=(150, 200)).size == (150, 200)


# ---- broken files


def _cut(data: bytes, at: float) -> bytes:
    return data[: int(len(data) * at)]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("at", [0.3, 0.7, 0.95])
def test_a_truncated_file_is_never_verified(format: str, at: float) -> None:
    data = _cut(encoded(scene(200, 150), format), at)
    with pytest.raises(BadInput):
        verify(data)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_mark_is_truncated(progressive: bool) -> None:
    data = encoded(scene(), "JPEG", progressive=progressive)
    with pytest.raises(BadInput):
        verify(data[:-2])
    assert verify(data + b"trailing bytes of a motion photo").format == "JPEG"


def test_a_jpeg_closed_too_early_is_truncated_although_its_end_mark_stands() -> None:
    data = encoded(scene(400, 300), "JPEG")
    with pytest.raises(BadInput, match="missing before"):
        verify(_cut(data, 0.6) + b"\xff\xd9")


def test_a_whole_grey_jpeg_is_not_taken_for_a_truncated_one() -> None:
    for mode, colour in (("RGB", (128, 128, 128)), ("L", 128), ("RGB", (255, 255, 255))):
        data = encoded(Image.new(mode, (200, 120), colour), "JPEG")
        assert verify(data).width == 200


def test_a_png_without_its_end_is_truncated() -> None:
    with pytest.raises(BadInput):
        verify(encoded(scene(), "PNG")[:-12])


def test_what_is_no_image_says_so_in_one_line(tmp_path: Path) -> None:
    for content, word in (
        (b"", "empty"),
        (b"<html>blocked</html>", "web page"),
        (b"plain words", "not an image"),
    ):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=word) as caught:
            probe(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    with pytest.raises(BadInput, match="no such file"):
        probe(tmp_path / "missing.jpg")


def test_a_bomb_is_stopped_before_it_is_decoded() -> None:
    data = encoded(Image.new("1", (3000, 3000)), "PNG")
    for call in (probe, open_image, verify):
        with pytest.raises(BadInput, match="pixels"):
            call(data, max_pixels=1_000_000)
    huge = bytearray(data)
    huge[16:24] = (60_000).to_bytes(4, "big") * 2  # 3.6 billion pixels, said in 60 bytes
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    with pytest.raises(BadInput, match="pixels"):
        open_image(bytes(huge))


def test_only_image_formats_are_opened() -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    with pytest.raises(BadInput):
        probe(eps)  # Pillow would hand it to Ghostscript


# ---- the crop


def crop(width: int, height: int, scaled: tuple[int, int], left: int = 0, top: int = 0, flip: bool = False) -> Crop:
    return Crop(
        width=width,
        height=height,
        scaled_width=scaled[0],
        scaled_height=scaled[1],
        left=left,
        top=top,
        flip=flip,
    )


def test_a_crop_has_the_bucket_size_and_shows_the_chosen_part() -> None:
    data = encoded(scene(960, 640), "PNG")
    left = load_crop(data, crop(64, 64, (96, 64)))
    right = load_crop(data, crop(64, 64, (96, 64), left=32))
    assert left.size == right.size == (64, 64) and left.mode == "RGB"
    assert left.getpixel((4, 40))[0] > 180 and right.getpixel((60, 40))[2] > 180
    whole = open_image(data).resize((96, 64), Image.Resampling.LANCZOS)
    assert same(right, whole.crop((32, 0, 96, 64)), 2)


def test_a_flip_mirrors_the_crop_and_nothing_is_random() -> None:
    data = encoded(scene(960, 640), "JPEG", quality=95)
    plain, flipped = (load_crop(data, crop(64, 64, (96, 64), left=10, flip=flip)) for flip in (False, True))
    assert flipped.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == plain.tobytes()
    assert load_crop(data, crop(64, 64, (96, 64), left=10)).tobytes() == plain.tobytes()


def test_a_jpeg_shrunk_while_decoding_looks_like_one_shrunk_after() -> None:
    picture = scene(1600, 1200)
    fast = load_crop(encoded(picture, "JPEG", quality=95), crop(128, 96, (128, 96)))
    slow = load_crop(encoded(picture, "PNG"), crop(128, 96, (128, 96)))
    assert same(fast, slow, 3)


def test_real_photos_verify_and_the_corrupt_one_does_not(shared_data: Path) -> None:
    for path in sorted((shared_data / "coco-mini" / "train2017").glob("*.jpg"))[:20]:
        assert verify(path).format == "JPEG"
    with pytest.raises(BadInput):
        verify(shared_data / "duplicates" / "ukbench09268_corrupt.jpg")


def test_a_jpeg_with_restart_marks_closed_too_early_is_truncated() -> None:
    for options in (
        {"restart_marker_blocks": 1},
        {"restart_marker_blocks": 7, "subsampling": 2},
        {"restart_marker_rows": 1},
    ):
        data = encoded(scene(400, 300), "JPEG", **options)
        assert verify(data).width == 400
        for at in (0.3, 0.6, 0.9):
            with pytest.raises(BadInput, match="missing before"):
                verify(_cut(data, at) + b"\xff\xd9")


def test_too_many_pixels_is_told_from_a_damaged_file() -> None:
    with pytest.raises(TooManyPixels):
        probe(encoded(scene(200, 150), "PNG"), max_pixels=1000)


@pytest.mark.parametrize("size", [(91, 235), (75, 41), (7, 9), (8, 8), (1, 1)])
def test_a_whole_jpeg_that_ends_in_grey_is_whole_at_any_size(size: tuple[int, int]) -> None:
    im = scene(*size)
    im.paste((128, 128, 128), (0, size[1] // 2, *size))
    for subsampling in (0, 2):
        assert verify(encoded(im, "JPEG", subsampling=subsampling)).width == size[0]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "LA"])
def test_a_png_whose_last_rows_are_black_is_whole_and_one_whose_header_promises_more_is_not(mode: str) -> None:
    im = scene(75, 41)
    im.paste((0, 0, 0), (0, 30, 75, 41))
    data = encoded(im.convert(mode), "PNG")
    assert verify(data).height == 41
    size = (75).to_bytes(4, "big") + (50).to_bytes(4, "big") + data[24:29]
    more = data[:16] + size + zlib.crc32(b"IHDR" + size).to_bytes(4, "big") + data[33:]
    with pytest.raises(BadInput, match="fewer rows"):
        verify(more)
