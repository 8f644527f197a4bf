"""A real Stable Diffusion 1 pipeline of 60,000 parameters, and pictures that it can learn."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

from edkit.train.settings import TrainSettings

UNET = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
VAE = {
    "block_out_channels": (8, 8, 8),
    "sample_size": 32,
    "scaling_factor": 1.0,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}


def letters_tokenizer() -> Any:
    """A CLIP tokenizer whose words are spelled letter by letter."""
    from transformers import CLIPTokenizer

    signs = "abcdefghijklmnopqrstuvwxyz0123456789,.'-"
    tokens = [*signs, *(sign + "</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=24)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: 32-pixel pictures, 4 x 8 x 8 latents, buckets in steps of 8 pixels."""
    import torch

    from edkit.train.initial import make_sd1

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("models") / "small"
    make_sd1(out, unet=UNET, vae=VAE, text=TEXT, tokenizer=letters_tokenizer())
    return out


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny model of a family (`sd1`, `sd2`, `sdxl`), made once."""
    from edkit.train.initial import init_model

    folder = tmp_path_factory.mktemp("families")

    def model(name: str) -> Path:
        out = folder / name
        return out if out.exists() else init_model(name, size="tiny", out=out).out

    return model


def drawn(folder: Path, n: int = 8, *, sizes: tuple[tuple[int, int], ...] = ((40, 40),)) -> Path:
    """Red and blue pictures with some noise, captioned by their names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    for i in range(n):
        width, height = sizes[i % len(sizes)]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[...] = [(220, 20, 20), (20, 20, 220)][i % 2]
        pixels += rng.integers(0, 20, pixels.shape).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{['red', 'blue'][i % 2]} paint_({i}).png")
    return folder


@pytest.fixture(scope="session")
def draw_pictures() -> Callable[..., Path]:
    """Draws red and blue pictures of the sizes asked for into a folder."""
    return drawn


@pytest.fixture(scope="session")
def patterns() -> Callable[..., list[Image.Image]]:
    """Draws pictures that look like nothing but themselves into a folder: patterns(folder, n, seed=0)."""

    def draw(folder: Path, n: int, *, seed: int = 0) -> list[Image.Image]:
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, n])
        made = []
        for i in range(n):
            blocks = rng.integers(0, 256, (7, 7, 3)).astype(np.uint8)
            made.append(Image.fromarray(blocks).resize((56, 48), Image.Resampling.BICUBIC))
            made[-1].save(folder / f"pattern {chr(97 + i)}_({i}).png")
        return made

    return draw


def fork(work: Callable[[], object], said: Path, *, kill_at: int | None = None, below: Path | None = None) -> int:
    """Run `work` in a child that has all this process has imported; its id. What it prints goes to `said`.

    With `kill_at` it kills itself at that many file operations (open to write, rename, remove, make a folder) on
    paths `below`. Its exit status is 1 after an exception.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(1, "w", closefd=False, encoding="utf-8")  # noqa: SIM115 - the old ones are pytest's
        if kill_at is not None:
            _kill_at(kill_at, str(below))
        work()
        status = 0
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - a child has no caller
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _kill_at(count: int, below: str) -> None:
    left = count

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left
        if event == "open" and (not isinstance(args[1], str) or args[1].startswith("r")) and not args[2] & os.O_CREAT:
            return
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
            return
        if isinstance(args[0], str | os.PathLike) and (below in os.fspath(args[0]) or not Path(args[0]).is_absolute()):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def ended(child: int) -> int:
    """Wait for a child; its exit status, negative where a signal ended it, as subprocess gives it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="session")
def forked() -> Callable[..., int]:
    """Runs a function in a child process that begins with all modules loaded: a child's process id."""
    if sys.platform != "linux":
        pytest.skip("forks children that use torch")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    return fork


@pytest.fixture(scope="session")
def exit_status() -> Callable[[int], int]:
    """Waits for a child."""
    return ended


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight square pictures."""
    return drawn(tmp_path / "pictures")


@pytest.fixture
def settings(model: Path, pictures: Path, tmp_path: Path) -> Callable[..., TrainSettings]:
    """Settings of a small quick run, with whatever a test changes."""

    def make(**changes: Any) -> TrainSettings:
        quick: dict[str, Any] = {
            "data_root": str(pictures),
            "model": str(model),
            "out": tmp_path / "run",
            "max_steps": 6,
            "batch_size": 4,
            "lr": 1e-3,
            "tensorboard": False,
            "num_threads": 1,
            "device": "cpu",
            "export_on_save": False,
        }
        return TrainSettings(**(quick | changes))

    return make
