"""Commands killed at any of their writes and started again leave what an undisturbed run leaves.

`make test` runs a short chain; all of them: `pytest -m slow tests/hostile/test_kills.py`.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import tiny_mar_scenes, tiny_scenes
from tests.hostile.kills import chain
from tests.released_layouts import write_maskgit

__all__ = ["tiny_mar_scenes", "tiny_scenes"]

EMOJI = Path(__file__).parents[2] / "data" / "emoji"

FEW = [
    f"training.{setting}"
    for setting in ("num_steps=7", "batch_size=4", "log_every=2", "save_every=3", "precision=no")
]
"""Steps, so that the log and the checkpoints never come together but at the end."""

SCENES = ["source.num_images=60"]
TOKENIZER = ["size=tiny", "num_codes=16", "kept_codes=8", "resolution=16", *SCENES]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of 300 images in a folder of each of five classes."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for name in ("ours", "real"):
        for index in range(300):
            folder = root / name / f"{index % 5}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels_HW3 = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels_HW3).save(folder / f"{index}.png")
    return {name: root / name for name in ("ours", "real")}


def test_short_chains(tiny_folder: Path, tmp_path: Path, count: Callable[[int], None]) -> None:
    """Images, and a tokenizer's training."""
    generate = ["generate", tiny_folder, "0", "1", "--num", "3", "--steps", "2", "--batch-size", "2"]
    train = ["train", "tokenizer", "data=scenes:classes", *FEW, *TOKENIZER, "--out", "out"]
    for name, arguments in (("generate", generate), ("train", train)):
        (tmp_path / name).mkdir()
        count(chain(arguments, tmp_path / name, kills=2, seed=1))


@pytest.fixture
def killed(tmp_path: Path, count: Callable[[int], None]) -> Callable[..., None]:
    """`killed(*arguments)`: two chains of a command."""

    def check(*arguments: object, kills: int = 5) -> None:
        for seed in range(2):
            folder = tmp_path / f"chain-{seed}"
            folder.mkdir()
            count(chain(arguments, folder, kills=kills, seed=seed))

    return check


@pytest.mark.slow
def test_generate(tiny_folder: Path, tiny_scenes: Path, killed: Callable[..., None]) -> None:
    killed("generate", tiny_folder, "0", "1", "2", "--num", "8", "--steps", "2", "--batch-size", "3", kills=8)


@pytest.mark.slow
def test_generate_shards(tiny_folder: Path, killed: Callable[..., None]) -> None:
    few = ["0", "1", "--num", "3", "--steps", "2", "--batch-size", "2"]
    killed("generate", tiny_folder, *few, "--shards", "webdataset", "--shard-size", "4", kills=2)


@pytest.mark.slow
def test_train_a_tokenizer(killed: Callable[..., None]) -> None:
    killed("train", "tokenizer", "data=scenes:classes", *FEW, *TOKENIZER, "--out", "out", kills=8)


@pytest.mark.slow
def test_train_a_model(killed: Callable[..., None]) -> None:
    """With its tokenizer before it, and the encoded images between."""
    first = [f"codec.{setting}" for setting in (*FEW, *TOKENIZER)]
    then = ["size=tiny", *SCENES, "samples.number=2", "samples.steps=2"]
    killed("train", "maskgit-scenes", *first, *then, *FEW, "--out", "out", kills=8)


@pytest.mark.slow
def test_train_a_shortcut(tiny_scenes: Path, killed: Callable[..., None]) -> None:
    rounds = ["images_per_round=4", "updates_per_round=2", "images_per_update=2", "step_counts=4"]
    settings = [*(f"rounds.{setting}" for setting in rounds), "full_steps=2"]
    killed("train", "maskgit-scenes-shortcut", f"model={tiny_scenes}", *settings, *FEW, "--out", "out")


@pytest.mark.slow
def test_tune_by_speed_rl(tiny_scenes: Path, killed: Callable[..., None]) -> None:
    settings = [
        f"speed_rl.{setting}"
        for setting in ("num_generations=2", "generation_batch_size=4", "step_counts=4,6")
    ]
    settings += ["sheets.every=3", "sheets.steps=2,4", "sheets.num_prompts=2"]
    killed("train", "maskgit-scenes-speed-rl", f"model={tiny_scenes}", *settings, *FEW, "--out", "out")


@pytest.mark.slow
def test_distil_a_student(tiny_mar_scenes: Path, killed: Callable[..., None]) -> None:
    killed(
        "train", "mar-scenes-marval", f"model={tiny_mar_scenes}", "source.num_images=8", *FEW, "--out", "out"
    )


@pytest.mark.slow
def test_reward_a_student(tiny_mar_scenes: Path, killed: Callable[..., None]) -> None:
    student = f"student={tiny_mar_scenes}-marval"
    tuning = ["tuning.num_steps=3", "tuning.grad_iterations=2", "tuning.images_per_update=2"]
    killed(
        "train", "mar-scenes-marval-rl", f"model={tiny_mar_scenes}", student, *tuning, *FEW,
        "source.num_images=8", "--out", "out",
    )  # fmt: skip


@pytest.mark.slow
def test_cache_latents_of_images(
    pictures: dict[str, Path], golden_mar, tmp_path: Path, killed: Callable[..., None]
) -> None:
    golden_mar.save_pretrained(tmp_path / "teacher", provenance={})
    data = [f"data={pictures['ours']}"]
    killed(
        "train", "marval", f"model={tmp_path / 'teacher'}", *data, *FEW, "training.accumulate=1",
        "part=head", "--out", "out", kills=8,
    )  # fmt: skip


@pytest.mark.slow
def test_compare(pictures: dict[str, Path], killed: Callable[..., None]) -> None:
    folders = (pictures["ours"], "--reference", pictures["real"])
    killed("compare", *folders, "--extractor", "scenes", "--save-statistics", "real.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["bench", "tune", "demo"])
def test_measurements(command: str, tiny_scenes: Path, killed: Callable[..., None]) -> None:
    few = ["--images", "12", "--seeds", "2", "--batch-size", "6"]
    options = {
        "bench": [tiny_scenes, "--steps", "2", "--budgets", "4:2", "--shown", "2", *few],
        "tune": [tiny_scenes, "--speedup", "2", "--objective", "fd_scenes", "--reference-steps", "4",
                 "--steps", "2", "4", "--search-images", "4", "--drift-images", "2", *few],
        "demo": ["--model", tiny_scenes, "--steps", "4", "--full-steps", "1", "--shown", "2", *few[:2]],
    }  # fmt: skip
    killed(*command.split(), *options[command])


@pytest.mark.slow
def test_convert(tmp_path: Path, killed: Callable[..., None]) -> None:
    transformer, codec = write_maskgit(tmp_path / "released", grid=4)
    sizes = ("--resolution", "64", "--overwrite")  # killed after its last file, it is refused without
    killed("convert", transformer, "--codec", codec, *sizes, "--out", "out", kills=3)


@pytest.mark.slow
@pytest.mark.skipif(not EMOJI.is_dir(), reason="no pack of the emoji in this checkout")
def test_build_the_emoji(killed: Callable[..., None]) -> None:
    killed("data", "emoji", "--source", EMOJI, "--out", "out", kills=3)
