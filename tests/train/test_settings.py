"""Settings: checked where they are made, and every mistake told with its place and its mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from edkit.data.errors import BadInput
from edkit.train import settings as st
from edkit.train.settings import TrainSettings, read_settings, resolve, to_toml

NEEDED = 'data_root = "photos"\nmodel = "owner/name"\n'


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_what_people_know() -> None:
    s = TrainSettings(data_root="photos", model="m")
    assert (s.cond_dropout, s.flip_p, s.seed, s.precision) == (0.04, 0.0, 555, "fp32")


def test_settings_are_frozen_and_keyword_only() -> None:
    s = TrainSettings(data_root="photos", model="m")
    with pytest.raises(AttributeError):
        s.lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainSettings("photos", "m")  # type: ignore[misc]


def test_an_unknown_key_names_file_line_and_nearest_key(tmp_path: Path) -> None:
    path = write(tmp_path / "train.toml", NEEDED + "\n# a comment\nbatchsize = 4\n")
    with pytest.raises(BadInput) as error:
        read_settings(path)
    assert str(error.value) == f"{path}:5: there is no setting 'batchsize' (did you mean 'batch_size'?)"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lr = -1.0", "must not be negative"),
        ("lr = nan", "finite"),
        ('lr = "fast"', "'fast' is not a number"),
        ("batch_size = 0", "at least 1"),
        ("batch_size = 2.5", "not a whole number"),
        ("batch_size = true", "not a whole number"),
        ("cond_dropout = 1.5", "between 0 and 1"),
        ('precision = "fp8"', "not one of fp32, bf16"),
        ('method = "dreambooth"', "not one of full"),
        ("betas = [0.9]", "two numbers"),
        ("ema_decay = 1.0", "between 0 and 1"),
        ("train_unet = false", "nothing would be trained"),
        ("timestep_end = 0", "above timestep_start"),
    ],
)
def test_a_bad_value_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    path = write(tmp_path / "train.toml", NEEDED + line + "\n")
    with pytest.raises(BadInput) as error:
        read_settings(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert said in str(error.value)


def test_a_bad_flag_names_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "train.toml", NEEDED)
    with pytest.raises(BadInput, match=r"^--batch-size: 0: must be at least 1"):
        read_settings(path, {"batch_size": 0})


def test_broken_toml_names_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "train.toml", NEEDED + "lr = = 3\n")
    with pytest.raises(BadInput, match=r"train.toml:3: is not TOML"):
        read_settings(path)


def test_flags_are_stronger_than_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "train.toml", NEEDED + "lr = 1e-4\nbatch_size = 3\n")
    s = read_settings(path, {"lr": 2e-4, "max_steps": None})
    assert (s.lr, s.batch_size, s.max_steps) == (2e-4, 3, None)


def test_one_data_root_in_a_list_is_that_data_root() -> None:
    s = TrainSettings(data_root=["photos"], preservation_data=["old"], model="m")  # type: ignore[arg-type]
    assert (s.data_root, s.preservation_data) == ("photos", "old")
    assert TrainSettings(data_root=("a", "b"), model="m").data_root == ("a", "b")


def test_missing_data_root_says_which_flag_mends_it() -> None:
    with pytest.raises(BadInput, match=r"data_root is missing.*--data-root"):
        read_settings(None, {"model": "m"})


def test_paths_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    s = read_settings(write(folder / "train.toml", NEEDED + 'out = "runs/a"\n'))
    assert s.data_root == str(folder.resolve() / "photos")
    assert s.out == folder.resolve() / "runs/a"
    assert s.model == "owner/name"  # no folder of that name: a hub id


def test_a_model_of_one_file_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "one.safetensors").touch()
    read = read_settings(write(tmp_path / "deep" / "train.toml", 'data_root = "p"\nmodel = "one.safetensors"\n'))
    assert Path(read.model) == (tmp_path / "deep" / "one.safetensors").resolve()
    monkeypatch.chdir(tmp_path / "deep")
    s = TrainSettings(data_root="p", model="one.safetensors")
    done = resolve(s, resolution=512, bucket_step=64, num_timesteps=1000, family="sd1")
    assert done.model == str((tmp_path / "deep" / "one.safetensors").resolve())


def test_a_written_file_reads_back_equal(tmp_path: Path) -> None:
    s = TrainSettings(
        data_root={
            "resolver": "multi",
            "resolvers": [{"resolver": "json", "path": str(tmp_path / "a.json")}],
        },
        model=str(tmp_path),
        out=tmp_path / 'a "quoted" é\tname',
        sample_prompts=("a 'dog'", 'b "cat"\n'),
        lr=1e-6,
        ema_decay=0.999,
        max_steps=7,
    )
    assert read_settings(write(tmp_path / "s.toml", to_toml(s))) == s


def test_seed_minus_one_draws_one_and_records_it() -> None:
    s = TrainSettings(data_root="p", model="m", seed=-1)
    drawn = {resolve(s, resolution=512, bucket_step=64, num_timesteps=1000, family="sd1").seed for _ in range(4)}
    assert len(drawn) > 1 and min(drawn) >= 0


def test_resolving_fills_in_the_familys_numbers_and_keeps_what_was_said() -> None:
    s = TrainSettings(data_root="p", model="m", resolution=768, lr=3e-5)
    done = resolve(s, resolution=512, bucket_step=64, num_timesteps=1000, family="sd1")
    assert (done.resolution, done.bucket_step, done.timestep_end, done.text_encoder_lr) == (
        768,
        64,
        1000,
        3e-5,
    )
    assert done.max_epochs == 10


def test_pictures_are_drawn_in_fewer_steps_than_the_model_has_timesteps() -> None:
    s = TrainSettings(data_root="p", model="m", sample_steps=1200)
    with pytest.raises(BadInput, match="sample_steps: 1200, but the model has 1000 timesteps"):
        resolve(s, resolution=512, bucket_step=64, num_timesteps=1000, family="sd1")


def test_assignments_are_toml_or_plain_text() -> None:
    said = st.flag_settings(["lr=1e-4", "sample-prompts=['a','b']", "model=some/path"], batch_size=2, seed=None)
    assert said == {"lr": 1e-4, "sample_prompts": ["a", "b"], "model": "some/path", "batch_size": 2}
    with pytest.raises(BadInput, match="did you mean 'optimizer'"):
        st.parse_assignments(["optimiser=adamw"])
