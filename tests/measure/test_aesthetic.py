"""Heads score rated embeddings in rising order, fold exactly, and refuse what is no head."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edkit.data.errors import BadInput, UsageError  # noqa: E402
from edkit.measure.aesthetic import PUBLISHED, fold, load_head  # noqa: E402


def rated(folder: Path) -> np.ndarray:
    return np.concatenate([np.load(folder / f"rating{rating}.npy") for rating in range(10)])


@pytest.mark.parametrize(
    ("head", "ratings"),
    [
        ("sa_0_4_vit_l_14_linear.pth", "vit_l_14_ratings"),
        ("sa_0_4_vit_b_32_linear.pth", "vit_b_32_ratings"),
        ("sac+logos+ava1-l14-linearMSE.pth", "vit_l_14_ratings"),
    ],
)
def test_published_heads_score_rated_embeddings_in_rising_order(shared_data: Path, head: str, ratings: str) -> None:
    vectors = rated(shared_data / "aesthetic" / ratings)
    scores = load_head(str(shared_data / "aesthetic" / head), dim=vectors.shape[1]).score(vectors)
    assert (np.diff(scores) > 0).all(), scores
    assert scores.min() > -3 and scores.max() < 12


def test_the_pinned_hashes_are_those_of_the_published_files(shared_data: Path) -> None:
    import hashlib

    files = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (shared_data / "aesthetic").glob("*.pth")}
    assert {head.sha256 for heads in PUBLISHED.values() for head in heads} <= files


def test_five_layers_fold_into_what_they_compute() -> None:
    torch.manual_seed(0)
    sizes = [12, 9, 7, 5, 3, 1]
    chain = torch.nn.Sequential(
        *(layer for a, b in pairwise(sizes) for layer in (torch.nn.Linear(a, b), torch.nn.Dropout()))
    ).eval()
    weight, bias = fold({name: t.double().numpy() for name, t in chain.state_dict().items()})
    x = torch.randn(6, 12)
    expected = chain(x).detach().numpy()[:, 0]
    assert x.numpy() @ weight + bias == pytest.approx(expected, abs=1e-5)


def test_layers_are_chained_by_number_not_by_spelling() -> None:
    rng = np.random.default_rng(0)
    state = {f"layers.{n}.weight": rng.normal(size=(4, 4)) for n in range(11)}
    state["layers.11.weight"] = rng.normal(size=(1, 4))
    product = np.eye(4)
    for n in range(11):
        product = state[f"layers.{n}.weight"] @ product
    assert fold(state)[0] == pytest.approx((state["layers.11.weight"] @ product)[0])


def test_pth_and_safetensors_give_one_head(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    linear = torch.nn.Linear(8, 1)
    torch.save(linear.state_dict(), tmp_path / "head.pth")
    save_file(dict(linear.state_dict()), tmp_path / "head.safetensors")
    one, other = (load_head(str(tmp_path / f"head.{end}"), dim=8) for end in ("pth", "safetensors"))
    assert one.weight.tolist() == other.weight.tolist()
    assert one.bias == other.bias


def test_a_pickle_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"weight": Bomb()}, tmp_path / "head.pth")
    with pytest.raises(BadInput, match=r"head\.pth: can't be read as weights"):
        load_head(str(tmp_path / "head.pth"), dim=8)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"weight": np.zeros((2, 8))},
        {"a.weight": np.zeros((4, 8)), "b.weight": np.zeros((1, 5))},
        {"weight": np.zeros((1, 8)), "running_mean": np.zeros(8)},
        {"0.weight": np.zeros((1, 8)), "1.weight": np.zeros(8)},
        {"weight": np.full((1, 8), np.nan)},
    ],
)
def test_what_is_no_linear_head_is_refused(state: dict[str, np.ndarray]) -> None:
    with pytest.raises(BadInput):
        fold(state)


def test_a_head_of_another_length_is_refused_in_one_line(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(8, 1).state_dict(), tmp_path / "head.pth")
    with pytest.raises(BadInput, match="takes 8 numbers an image, ViT-B-32 gives 512"):
        load_head(str(tmp_path / "head.pth"), dim=512, clip="ViT-B-32")


def test_offline_a_published_head_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EDKIT_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="--head PATH") as caught:
        load_head("v2", dim=768)
    assert "\n" not in str(caught.value)


def test_a_published_head_is_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: Path
) -> None:
    data = (shared_data / "aesthetic" / "sa_0_4_vit_l_14_linear.pth").read_bytes()
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / f"{PUBLISHED['v1'][0].sha256[:16]}.pth").write_bytes(data)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("EDKIT_CACHE", str(tmp_path))
    assert load_head("v1", dim=768).weight.shape == (768,)


def test_a_published_head_is_fetched_once_and_held_against_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib
    import threading
    from dataclasses import replace
    from http.server import BaseHTTPRequestHandler, HTTPServer

    torch.save(torch.nn.Linear(8, 1).state_dict(), tmp_path / "published.pth")
    data = (tmp_path / "published.pth").read_bytes()
    served: list[str] = []

    class Makers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.append(self.path)
            body = data if self.path == "/right" else data[::-1]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Makers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("EDKIT_CACHE", str(tmp_path / "cache"))
    here = f"http://127.0.0.1:{server.server_port}"
    right = replace(PUBLISHED["v1"][0], url=f"{here}/right", sha256=hashlib.sha256(data).hexdigest(), dim=8)
    wrong = replace(right, url=f"{here}/wrong", sha256="0" * 64)
    import edkit.measure.aesthetic as module

    try:
        monkeypatch.setattr(module, "PUBLISHED", {"v1": (right,), "v2": (wrong,)})
        assert load_head("v1", dim=8).bias == load_head("v1", dim=8).bias
        with pytest.raises(BadInput, match="not the one that was published"):
            load_head("v2", dim=8)
    finally:
        server.shutdown()
        server.server_close()
    assert served == ["/right", "/wrong"]


def test_v2_does_not_fit_a_small_clip() -> None:
    with pytest.raises(UsageError, match="v2 is made for ViT-L-14"):
        load_head("v2", dim=512, clip="ViT-B-32-quickgelu")


def test_a_hub_head_fails_offline_in_one_line() -> None:
    with pytest.raises(BadInput, match=r"hf://someone/heads/head\.pth: can't be fetched") as caught:
        load_head("hf://someone/heads/head.pth", dim=8)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="hf://owner/repository/file"):
        load_head("hf://someone", dim=8)
