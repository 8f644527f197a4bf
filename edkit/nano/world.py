"""The world nano knows: one coloured shape on a textured ground, drawn from scene and seed, and said in plain words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float32]
Point = tuple[float, float]
RGB = tuple[int, int, int]

# Saturated and far apart in hue; the grounds below stay muted, so that chroma alone tells object from ground.
COLOURS: dict[str, RGB] = {
    "red": (208, 36, 40),
    "orange": (238, 128, 24),
    "yellow": (240, 218, 44),
    "green": (30, 152, 62),
    "cyan": (40, 196, 200),
    "blue": (40, 74, 206),
    "purple": (128, 46, 180),
    "pink": (242, 122, 192),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
BACKGROUNDS: dict[str, str] = {
    "grass": "grass",
    "sand": "sand",
    "brick": "a brick wall",
    "wood": "wood",
    "water": "water",
    "cloth": "a checkered cloth",
}
POSITIONS: dict[str, str] = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
SIZES = ("small", "", "large")

SUBJECT_NAME = "mimo"
SUBJECT_CLASS = "star"
# The halves of the subject, left and right. Both colours are in the world, their meeting on one object is not; what
# lies between them is a colour too (orange), so that a soft border between the halves is no hole.
SUBJECT_COLOURS = ("red", "yellow")

CENTRES: dict[str, Point] = {
    "left": (0.33, 0.5),
    "right": (0.67, 0.5),
    "top": (0.5, 0.33),
    "bottom": (0.5, 0.67),
    "centre": (0.5, 0.5),
}
_RADII: dict[str, tuple[float, float]] = {"small": (0.165, 0.185), "": (0.19, 0.235), "large": (0.24, 0.265)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What a picture shows; how it is jittered, lit and speckled comes from the seed it is drawn with.

    `phrasing` picks the sentence that says it. `subject` puts the made-up subject in the place of the plain shape.
    """

    colour: str
    shape: str
    background: str
    position: str
    size: str = ""
    phrasing: int = 0
    subject: bool = False

    @property
    def triple(self) -> tuple[str, str, str]:
        """Colour, shape and background: what is held out of training, or not."""
        return (self.colour, self.shape, self.background)


def _held_out() -> frozenset[tuple[str, str, str]]:
    """Each pair of colour and shape with exactly one background, spread so that every background loses equally many."""
    grounds = tuple(BACKGROUNDS)
    pairs = itertools.product(enumerate(COLOURS), enumerate(SHAPES))
    return frozenset((c, s, grounds[(i + 2 * i // len(grounds) + j) % len(grounds)]) for (i, c), (j, s) in pairs)


HELD_OUT: frozenset[tuple[str, str, str]] = _held_out()


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt and what a right picture of it shows."""

    text: str
    scene: Scene


def held_out_prompts() -> tuple[Prompt, ...]:
    """The 96 prompts nano is judged by: every held-out combination at two positions, in a fixed order."""
    positions = tuple(POSITIONS)
    prompts = []
    for number, (colour, shape, background) in enumerate(sorted(HELD_OUT)):
        for turn in range(2):
            scene = Scene(
                colour=colour,
                shape=shape,
                background=background,
                position=positions[(number + 2 * turn) % len(positions)],
            )
            prompts.append(Prompt(text=caption(scene), scene=scene))
    return tuple(prompts)


# --- words ------------------------------------------------------------------------------------------------------------

# {thing} "large red star", {a} its article, {on} "on grass", {ground} "grass", {where} "on the left".
PHRASINGS = (
    "{a} {thing} {on}, {where}",
    "{a} {thing} {on}, {where}",
    "{a} {thing} {on}",
    "{where}, {a} {thing} {on}",
    "{ground} with {a} {thing} {where}",
    "a picture of {a} {thing} {on}, {where}",
    "{a} {thing} {where}",
    "{a} {bare} {on}",
)


def caption(scene: Scene) -> str:
    """Says a scene in plain words, in the phrasing it asks for; some leave out where, on what, or the colour."""
    name = f"{SUBJECT_NAME} {scene.shape}" if scene.subject else f"{scene.colour} {scene.shape}"
    thing = f"{scene.size} {name}".strip()
    ground = BACKGROUNDS[scene.background]
    return PHRASINGS[scene.phrasing % len(PHRASINGS)].format(
        a="an" if thing[0] in "aeiou" else "a",
        thing=thing,
        bare=name if scene.subject else scene.shape,
        on=f"on {ground}",
        ground=ground,
        where=POSITIONS[scene.position],
    )


def subject_caption(scene: Scene) -> str:
    """Says a scene of the subject; the same as `caption`, under the name the demo uses."""
    return caption(scene)


# --- which scenes -----------------------------------------------------------------------------------------------------


def scenes(num_scenes: int, seed: int) -> Iterator[Scene]:
    """Yields scenes for training, never a held-out combination; scene i depends on seed and i alone."""
    for index in range(num_scenes):
        yield training_scene(index, seed)


def training_scene(index: int, seed: int) -> Scene:
    """Scene number `index` of the endless training stream `seed`."""
    rng = _rng("scene", seed, index)
    while True:
        scene = Scene(
            colour=_pick(rng, tuple(COLOURS)),
            shape=_pick(rng, SHAPES),
            background=_pick(rng, tuple(BACKGROUNDS)),
            position=_pick(rng, tuple(POSITIONS)),
            size=_pick(rng, SIZES),
            phrasing=int(rng.integers(len(PHRASINGS))),
        )
        if scene.triple not in HELD_OUT:
            return scene


def subject_scene(index: int, seed: int = 0) -> Scene:
    """Scene number `index` of the subject: grounds and positions take turns, sizes and phrasings vary."""
    rng = _rng("subject scene", seed, index)
    grounds, positions = tuple(BACKGROUNDS), tuple(POSITIONS)
    return Scene(
        colour=SUBJECT_COLOURS[0],
        shape=SUBJECT_CLASS,
        background=grounds[index % len(grounds)],
        position=positions[(index + index // len(positions)) % len(positions)],
        size=_pick(rng, SIZES[1:]),  # small, it would lose its halves in the VAE
        phrasing=(0, 2, 4, 3)[int(rng.integers(4))],
        subject=True,
    )


def draw_subject(index: int, seed: int = 0, size: int = 64) -> Image.Image:
    """Draws picture number `index` of the subject; `subject_caption(subject_scene(index, seed))` says it."""
    return draw(subject_scene(index, seed), _mix(seed, index), size=size)


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(scene: Scene, seed: int, *, size: int = 64) -> Image.Image:
    """Draws a scene as an RGB picture of size x size pixels; the same arguments give the same picture everywhere.

    Layout, rotation, colour and light are the same at every size; only the sensor's noise belongs to the pixels.
    """
    rng = _rng("draw", seed)
    centre, radius, angle = _layout(scene, rng)
    ground = ground_texture(scene.background, rng, size)
    figure, mask = _figure(scene, rng, centre, radius, angle, size)
    picture = ground + (figure - ground) * mask[..., None]
    return finish(picture, rng)


def ground_texture(background: str, rng: np.random.Generator, size: int) -> Floats:
    """Draws a ground in one of the world's textures: (size, size, 3), 0..255."""
    return _GROUNDS[background](rng, size)


def finish(picture: Floats, rng: np.random.Generator) -> Image.Image:
    """Lights the picture from one side, adds the sensor's noise and rounds to bytes."""
    size = picture.shape[0]
    across, down = _grid(size)
    direction = rng.uniform(0.0, 2.0 * np.pi)
    slope = rng.uniform(0.0, 0.16)
    gain = rng.uniform(0.92, 1.06)
    light = gain * (1.0 + slope * ((across - 0.5) * np.cos(direction) + (down - 0.5) * np.sin(direction)))
    noise = rng.normal(0.0, rng.uniform(1.0, 2.5), picture.shape)
    return Image.fromarray(np.clip(picture * light[..., None] + noise + 0.5, 0, 255).astype(np.uint8), "RGB")


def _layout(scene: Scene, rng: np.random.Generator) -> tuple[Point, float, float]:
    x, y = CENTRES[scene.position]
    jitter = rng.uniform(-0.03, 0.03, 2)
    radius = rng.uniform(*_RADII[scene.size])
    return (x + float(jitter[0]), y + float(jitter[1])), float(radius), float(rng.uniform(-14.0, 14.0))


def _figure(
    scene: Scene, rng: np.random.Generator, centre: Point, radius: float, angle: float, size: int
) -> tuple[Floats, Floats]:
    """Returns the object's colours (size, size, 3) and its coverage 0..1 (size, size)."""
    mask = shape_mask(scene.shape, centre, radius, angle, size)
    speckle = 1.0 + 0.05 * noise_field(rng, size, 24)[..., None]
    if not scene.subject:
        return (_shade(scene.colour, rng) * speckle).astype(np.float32), mask
    colours = np.empty((size, size, 3), np.float32)
    colours[:] = (38, 32, 44)  # the dark outline, what the smaller star leaves uncovered
    inner = outline(scene.shape, centre, radius * 0.9, angle)
    turn = np.deg2rad(angle)
    for side, name in zip((-1.0, 1.0), SUBJECT_COLOURS, strict=True):
        half = polygon_mask(inner, size) * _half_plane(centre, turn, side, size)
        colours += half[..., None] * (_shade(name, rng) * speckle - colours)
    for side in (-1.0, 1.0):
        eye = _along(centre, turn, side * 0.23 * radius, -0.08 * radius)
        white = polygon_mask(outline("circle", eye, radius * 0.15, 0.0), size)[..., None]
        colours += white * (np.asarray((250, 250, 250), np.float32) - colours)
        pupil = polygon_mask(outline("circle", eye, radius * 0.075, 0.0), size)[..., None]
        colours += pupil * (np.asarray((20, 18, 24), np.float32) - colours)
    return colours, mask


def _shade(colour: str, rng: np.random.Generator) -> Floats:
    """The named colour, a little lighter or darker and a little shifted: (3,)."""
    base = np.asarray(COLOURS[colour], np.float32)
    return (base * rng.uniform(0.92, 1.06) + rng.uniform(-7.0, 7.0, 3)).astype(np.float32)


def _along(centre: Point, turn: float, across: float, down: float) -> Point:
    cos, sin = float(np.cos(turn)), float(np.sin(turn))
    return (centre[0] + across * cos - down * sin, centre[1] + across * sin + down * cos)


def _half_plane(centre: Point, turn: float, side: float, size: int) -> Floats:
    across, down = _grid(size)
    distance = ((across - centre[0]) * np.cos(turn) + (down - centre[1]) * np.sin(turn)) * side
    return np.asarray(np.clip(distance * size + 0.5, 0.0, 1.0), np.float32)


# --- outlines ---------------------------------------------------------------------------------------------------------

RING_HOLE = 0.56  # inner radius of a ring, as a part of the outer


def outline(shape: str, centre: Point, radius: float, angle: float) -> list[Point]:
    """The outline of a shape in picture units (0..1), turned by `angle` degrees; a ring's is its outer edge.

    The radius is of the shape's look: shapes of one radius cover about the same area.
    """
    if shape in ("circle", "ring"):
        steps = np.linspace(0.0, 2.0 * np.pi, 72, endpoint=False)
        unit = [(float(np.cos(t)), float(np.sin(t))) for t in steps]
    elif shape == "square":
        unit = [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]
    elif shape == "triangle":
        unit = [(0.0, -1.1), (1.1, 0.82), (-1.1, 0.82)]
    elif shape == "star":
        unit = []
        for point in range(10):
            reach = 1.2 if point % 2 == 0 else 0.5
            turn = np.pi * point / 5.0
            unit.append((reach * float(np.sin(turn)), -reach * float(np.cos(turn))))
    elif shape == "heart":
        steps = np.linspace(0.0, 2.0 * np.pi, 96, endpoint=False)
        unit = [
            (
                1.1 * float(np.sin(t) ** 3),
                -0.066 * float(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) - 0.1,
            )
            for t in steps
        ]
    else:
        raise ValueError(f"no such shape: {shape}; the world has {', '.join(SHAPES)}")
    turn = np.deg2rad(angle)
    return [_along(centre, float(turn), radius * x, radius * y) for x, y in unit]


def shape_mask(shape: str, centre: Point, radius: float, angle: float, size: int) -> Floats:
    """Coverage 0..1 of a shape of the world, a ring's hole left out: (size, size)."""
    mask = polygon_mask(outline(shape, centre, radius, angle), size)
    if shape == "ring":
        mask = mask - polygon_mask(outline("circle", centre, radius * RING_HOLE, angle), size)
    return mask


def polygon_mask(points: list[Point], size: int) -> Floats:
    """Coverage 0..1 of a filled polygon, by supersampling: (size, size)."""
    scale = 4 if size <= 128 else 2
    canvas = Image.new("L", (size * scale, size * scale), 0)
    # PIL's polygons take in their outline, half a pixel on every side: shift by it, so that the centre stays true.
    ImageDraw.Draw(canvas).polygon([(x * size * scale - 0.5, y * size * scale - 0.5) for x, y in points], fill=255)
    return np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32) / 255.0


# --- textures ---------------------------------------------------------------------------------------------------------


def noise_field(rng: np.random.Generator, size: int, cells: int, tall: int | None = None) -> Floats:
    """Smooth noise of about unit spread, `cells` across and `tall` down, the same at every size: (size, size)."""
    grid = rng.normal(0.0, 1.0, (tall or cells, cells)).astype(np.float32)
    return np.asarray(Image.fromarray(grid, "F").resize((size, size), Image.Resampling.BICUBIC), np.float32)


def _grid(size: int) -> tuple[Floats, Floats]:
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size
    down, across = np.meshgrid(axis, axis, indexing="ij")
    return np.asarray(across, np.float32), np.asarray(down, np.float32)


def _tinted(base: RGB, rng: np.random.Generator, light: Floats) -> Floats:
    """A colour under a map of lightness, in levels of 255: (size, size, 3)."""
    colour = np.asarray(base, np.float32) + rng.uniform(-6.0, 6.0, 3).astype(np.float32)
    return (colour + light[..., None]).astype(np.float32)


def _grass(rng: np.random.Generator, size: int) -> Floats:
    blades = 9.0 * noise_field(rng, size, 32, 12) + 6.0 * noise_field(rng, size, 6)
    return _tinted((98, 120, 78), rng, blades)


def _sand(rng: np.random.Generator, size: int) -> Floats:
    grain = 4.0 * noise_field(rng, size, 40) + 5.0 * noise_field(rng, size, 5)
    return _tinted((206, 190, 158), rng, grain)


def _brick(rng: np.random.Generator, size: int) -> Floats:
    across, down = _grid(size)
    rows = 6.0
    y = down * rows + rng.uniform()
    x = across * rows / 2.0 + rng.uniform() + 0.5 * (np.floor(y) % 2)
    soft = rows / 64.0  # mortar's edge in rows, one pixel at 64
    mortar = np.maximum(_line(y % 1.0, 0.12, soft), _line(x % 1.0, 0.06, soft / 2.0))
    shade = rng.normal(0.0, 7.0, (9, 7)).astype(np.float32)[np.floor(y).astype(int), np.floor(x).astype(int)]
    wall = _tinted((146, 108, 98), rng, (shade + 3.0 * noise_field(rng, size, 30)).astype(np.float32))
    return np.asarray(wall + mortar[..., None] * (np.asarray((176, 170, 164), np.float32) - wall), np.float32)


def _line(phase: Floats, width: float, soft: float) -> Floats:
    """A line of the given width around phase 0 (of 1), with soft edges."""
    distance = np.minimum(phase, 1.0 - phase)
    return np.asarray(np.clip((width / 2.0 - distance) / soft + 0.5, 0.0, 1.0), np.float32)


def _wood(rng: np.random.Generator, size: int) -> Floats:
    across, down = _grid(size)
    bend = 0.35 * noise_field(rng, size, 3, 4)
    grain = np.sin(2.0 * np.pi * (down * rng.uniform(4.0, 6.0) + bend + rng.uniform()))
    plank = _line((across * 2.0 + rng.uniform()) % 1.0, 0.05, 2.0 / 64.0)
    light = 8.0 * grain + 3.0 * noise_field(rng, size, 8, 40) - 34.0 * plank
    return _tinted((146, 118, 86), rng, light.astype(np.float32))


def _water(rng: np.random.Generator, size: int) -> Floats:
    across, down = _grid(size)
    sway = 0.12 * noise_field(rng, size, 4)
    waves = np.sin(2.0 * np.pi * (down * rng.uniform(5.0, 7.0) + 0.4 * np.sin(2.0 * np.pi * across * 1.5) + sway))
    return _tinted((112, 138, 156), rng, (10.0 * waves + 4.0 * noise_field(rng, size, 12)).astype(np.float32))


def _cloth(rng: np.random.Generator, size: int) -> Floats:
    across, down = _grid(size)
    count = rng.uniform(3.0, 3.8)
    soft = count / 64.0
    stripes = []
    for axis in (across, down):
        phase = (axis * count + rng.uniform()) % 1.0
        stripes.append(_line(phase, 0.5, soft))
    light = 26.0 * (stripes[0] + stripes[1] - 1.0) + 3.0 * noise_field(rng, size, 40)
    return _tinted((196, 188, 190), rng, light.astype(np.float32))


_GROUNDS = {
    "grass": _grass,
    "sand": _sand,
    "brick": _brick,
    "wood": _wood,
    "water": _water,
    "cloth": _cloth,
}


# --- randomness -------------------------------------------------------------------------------------------------------

Purpose = Literal["scene", "subject scene", "draw", "rich"]
_PURPOSES: dict[str, int] = {"scene": 1, "subject scene": 2, "draw": 3, "rich": 4}


def _rng(purpose: Purpose, *items: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((_PURPOSES[purpose], *items))))


def _mix(seed: int, index: int) -> int:
    """One seed out of two, without chance meetings of neighbours."""
    return int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0])


def training_picture(index: int, seed: int, *, size: int = 64) -> tuple[Scene, Image.Image]:
    """Picture number `index` of the training stream `seed`, with its scene."""
    scene = training_scene(index, seed)
    return scene, draw(scene, _mix(seed, index), size=size)


def without_words(scene: Scene) -> Scene:
    """The scene in its plainest phrasing, for comparisons that must not depend on the sentence."""
    return replace(scene, phrasing=0)


def _pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]
