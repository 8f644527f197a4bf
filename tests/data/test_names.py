"""Captions as file names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edkit.data import names
from edkit.data.names import Namer, can_name, caption_of_stem, is_camera_name, safe_name


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("person_ (12)", "person"),
        ("a dog on a beach, sunny_3", "a dog on a beach, sunny"),
        ("john doe", "john doe"),
        ("_MG_1234", ""),
        ("person _1", "person"),
        ("cafe\u0301_1", "café"),  # a decomposed name, as HFS+ hands it back
        ("a_b_c", "a"),
    ],
)
def test_a_caption_is_the_stem_up_to_the_first_underscore(stem: str, caption: str) -> None:
    assert caption_of_stem(stem) == caption


WITHOUT_SPACES = """
IMG_1234 IMG_1234_2 IMG-20230401-WA0012 DSC00017 _DSC0017 _MG_1234 DSC_0001 DSCN1234 DSCF0001 P1010001
PXL_20240101_120000000 PXL_20240101_120000000.PORTRAIT PXL_20240101_120000000~2 MVIMG_20200101_000000
VID_20200101 GOPR0001 DJI_0001 CIMG0012 20240101_120000 2024-01-01 123 000000391895 00012 0001_2 12_(1)
5f4dcc3b5aa765d61d8327deb882cf99 00000abc3 550e8400-e29b-41d4-a716-446655440000
550e8400-e29b-41d4-a716-446655440000_1 FB_IMG_1581234567890 received_1234567 Screenshot_20240101-120000
SAM_0001 48529348_3a5b2c91d0_o 118743920_293847293_n image-3 image_3 images download unnamed
photo_2024-01-01_12-00-00 ComfyUI_00001_ mmexport1234567890 img IMG WIN_20230101_12_00_00 Untitled-1
0001_a 1920x1080
"""
CAMERA = [
    *WITHOUT_SPACES.split(),
    "image (3)",
    "images (12)",
    "download (1)",
    "WhatsApp Image 2024-01-01 at 12.00.00",
    "Screen Shot 2024-01-01 at 1.00.00 PM",
    "IMG_1234 (1)",
    "0001_a dog on a beach",
    "20240101_beach",
    "IMG_1234 copy",
]
PEOPLE = [
    *(
        "person",
        "john doe",
        "a dog on a beach, sunny",
        "sam",
        "photo of a dog",
        "image of a cat_3",
        "sam_(3)",
    ),
    *(
        "1girl, solo",
        "a photograph",
        "2 dogs",
        "a 1950s car",
        "person (12)",
        "a frame",
        "red circle",
        "cafe",
        "facade",
    ),
    *(
        "p",
        "deadbeat",
        "4k wallpaper",
        "beaded",
        "photo",
        "photo_(3)",
        "picture_(12)",
        "file cabinet",
        "win",
        "Imogen",
    ),
    *(
        "decade",
        "a",
        "signal fire",
        "dscovr satellite",
        "mobile",
        "image of 3 cats_1",
        "an img tag",
        "vidal",
        "feedback",
    ),
]


@pytest.mark.parametrize("stem", CAMERA)
def test_names_that_devices_browsers_and_hashes_give_are_no_captions(stem: str) -> None:
    assert is_camera_name(stem)


@pytest.mark.parametrize("stem", PEOPLE)
def test_names_that_people_give_are_captions(stem: str) -> None:
    assert not is_camera_name(stem)


PIECES = ["img", "IMG", "dsc", "fb", "whatsapp", "image", "screen", "shot", "photo", "p", "a", "dog", "é", "x", "_mg_"]
PIECES += ["_", "__", " ", "-", ".", "(", ")", "~", "12", "1920x1080", "deadbeef", "5f4dcc3b", "0", "１", "½", "{"]


@given(st.lists(st.sampled_from(PIECES), max_size=7).map("".join) | st.text(max_size=12))
def test_the_short_way_to_see_that_a_name_is_no_cameras_never_errs(stem: str) -> None:
    assert is_camera_name(stem) == names._is_camera_name(stem)


@pytest.mark.parametrize(
    "caption",
    [
        *(
            "",
            " a",
            "a ",
            "a_b",
            "a/b",
            "a\\b",
            "a:b",
            'a "b"',
            "a|b",
            "what?",
            "a*",
            "<a>",
            "CON",
            "nul",
            "Com1.x",
        ),
        *(
            "a.",
            ".a",
            "x" * 121,
            "猫" * 80,
            "line\nbreak",
            "tab\t",
            "IMG_1",
            "1234",
            "image",
            "e\u0301",
            "\ud800",
        ),
        *("lpt³", "NUL .a"),
    ],
)
def test_a_caption_that_a_name_cannot_carry_goes_to_a_sidecar(caption: str) -> None:
    assert not can_name(caption)
    name, sidecar = Namer().name(caption, ".jpg")
    assert sidecar == caption
    assert not set(name) & set('/\\<>:"|?*') and name.endswith("_(1).jpg")


@pytest.mark.parametrize("caption", ["person", "a dog, running", "人", "10,000 people", "it's 5% off!", "x" * 120])
def test_an_ordinary_caption_names_its_file(caption: str) -> None:
    assert can_name(caption)
    assert Namer().name(caption, ".png") == (f"{caption}_(1).png", None)


@given(st.text(max_size=300))
def test_every_caption_comes_back_exactly_from_name_or_sidecar(caption: str) -> None:
    name, sidecar = Namer().name(caption, ".jpg")
    stem = name.removesuffix(".jpg")
    assert (caption_of_stem(stem) if sidecar is None else sidecar) == caption
    assert sidecar is not None or not is_camera_name(stem)


@given(st.text(max_size=400))
def test_a_safe_name_is_short_visible_and_allowed_everywhere(caption: str) -> None:
    name = safe_name(caption)
    assert 0 < len(name) <= 122 and len(name.encode()) <= 210
    assert name == name.strip() and not name.startswith(".") and not name.endswith(".")
    assert name.isprintable() and not set(name) & set('_/\\<>:"|?*')
    assert name.split(".")[0].rstrip().casefold() not in {"con", "nul", "aux", "prn", "com1", "lpt9"}


def test_numbers_run_by_caption_whatever_its_case_and_skip_what_stands_there() -> None:
    namer = Namer(["Person_(1).JPG", "person_(3).txt", "other.png"])
    assert namer.name("person", ".jpg")[0] == "person_(2).jpg"
    # (3) has a sidecar already, (4) shares nothing
    assert namer.name("PERSON", ".png")[0] == "PERSON_(4).png"
    assert namer.name("dog", ".png")[0] == "dog_(1).png"


def test_numbering_a_hundred_thousand_equal_captions_is_linear() -> None:
    namer = Namer(f"person_({n}).jpg" for n in range(1, 50_001))
    names = {namer.name("person", ".jpg")[0] for _ in range(50_000)}
    assert len(names) == 50_000 and "person_(50001).jpg" in names
