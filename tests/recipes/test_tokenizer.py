"""The tokenizer's trainer: both kinds, any images, exact resume, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from swiftmask.cli.overrides import override
from swiftmask.recipes import tokenizer
from swiftmask.recipes.tokenizer import TokenizerRecipe, mosaics
from swiftmask.recipes.tokenizer_files import read_tokenizer
from swiftmask.training.reconstruction import (
    PerceptualFeatures,
    ReconstructionConfig,
    ReconstructionLoss,
    edge_error,
)

_TINY = ["resolution=16", "size=tiny", "num_codes=12", "training.batch_size=4", "training.log_every=1"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for number in range(12):
        colour = (20 * number, 255 - 20 * number, 90)
        Image.new("RGB", (20, 24), colour).save(folder / f"{number:02d}.png")
    return folder


def recipe(images: Path, *settings: str) -> TokenizerRecipe:
    return override(tokenizer.recipe(), [f"data={images}", *_TINY, *settings])


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_a_run_ends_in_a_tokenizer(kind: str, images: Path, tmp_path: Path) -> None:
    settings = (f"kind={kind}", "training.num_steps=3", "source.held_out=0.3", "kept_codes=9")
    found = read_tokenizer(recipe(images, *settings).run(tmp_path))
    assert (found.kind, found.resolution, found.grid) == (kind, 16, 4)
    rows = found.rows(torch.rand(2, 3, 16, 16))
    if kind == "vq":
        assert rows.shape == (2, 4, 4) and int(rows.max()) < 9
    else:
        assert rows.shape == (2, 8, 4, 4)
        tokens = found.codec.encode(torch.rand(64, 3, 16, 16))
        assert 0.2 < float(tokens.std()) < 5, "latents are scaled to a deviation of about 1"
    assert found.codec.decode(found.codec.encode(torch.rand(2, 3, 16, 16))).shape == (2, 3, 16, 16)
    assert (tmp_path / "reconstructions.png").is_file()


def test_a_stopped_run_ends_in_the_same_weights(images: Path, tmp_path: Path) -> None:
    settings = ("training.num_steps=4", "training.save_every=2", "losses.adversarial=0.5")
    whole = recipe(images, *settings, "losses.adversarial_after=1")

    class StoppedError(Exception):
        pass

    def stop(progress) -> None:
        if progress.step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        whole.run(tmp_path / "parts", stop)
    first, second = whole.run(tmp_path / "parts"), whole.run(tmp_path / "whole")
    assert _weights(first).keys() == _weights(second).keys()
    assert all(torch.equal(value, _weights(second)[key]) for key, value in _weights(first).items())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_codec_and_discriminator_take_turns(images: Path) -> None:
    made = recipe(images, "training.num_steps=4", "losses.adversarial=0.5", "losses.adversarial_after=2")
    assert [made.losses.turn(step) for step in range(6)] == [
        "codec", "codec", "codec", "discriminator", "codec", "discriminator"
    ]  # fmt: skip
    trainer = made.untrained()
    images_B3HW = torch.rand(4, 3, 16, 16)
    for turn, moved, still in (("codec", "codec", "losses"), ("discriminator", "losses", "codec")):
        trainer.zero_grad(set_to_none=True)
        loss, _ = trainer(tokenizer.Images(images_B3HW, turn, judged=True))  # type: ignore[arg-type]
        loss.backward()
        norms = {
            part: sum(
                float(p.grad.abs().sum()) for p in getattr(trainer, part).parameters() if p.grad is not None
            )
            for part in ("codec", "losses")
        }
        assert norms[moved] > 0
        if turn == "discriminator":
            assert norms[still] == 0


def test_lines_weigh_more_than_a_shift_in_colour() -> None:
    shifted = torch.full((1, 3, 16, 16), 0.1)
    line = torch.zeros(1, 3, 16, 16)
    line[..., 8] = 1.6  # the same mean error
    assert float(edge_error(shifted)) == pytest.approx(0, abs=1e-6)
    assert float(edge_error(line)) > 0.1


def _vgg(path: Path) -> None:
    widths, place, channels = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), 0, 3
    state = {}
    for block in widths:
        for width in block:
            state[f"features.{place}.weight"] = torch.randn(width, channels, 3, 3) / (9 * channels) ** 0.5
            state[f"features.{place}.bias"] = torch.zeros(width)
            place, channels = place + 2, width
        place += 1
    save_file(state, path)


def test_perceptual_distance_is_zero_for_equal_images_alone(tmp_path: Path) -> None:
    _vgg(tmp_path / "vgg16.safetensors")
    features = PerceptualFeatures(tmp_path / "vgg16.safetensors")
    one, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    assert float(features.distance(one, one)) == 0
    assert float(features.distance(one, other)) > 0.01
    config = ReconstructionConfig(perceptual=0.1, perceptual_network=tmp_path / "vgg16.safetensors")
    losses = ReconstructionLoss(config)
    assert not list(losses.parameters()), "its weights are neither trained nor saved"


def test_another_network_is_no_vgg(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="no VGG16"):
        PerceptualFeatures(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("downscale=3", "downscale must be"),
        ("resolution=18", "multiple of downscale"),
        ("kept_codes=13", "at most num_codes"),
        ("losses.perceptual=1", "go together"),
        ("data=nowhere", "no such image folder"),
        ("data=", "data is not set"),
        ("data=scenes:nothing", "expected scenes:classes"),
    ],
)
def test_what_is_refused(setting: str, said: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        recipe(images, setting, "training.num_steps=1").run(tmp_path / "run")


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.xyz").write_text("no image")
    with pytest.raises(ValueError, match="no images found in .*1 file.*notes.xyz"):
        recipe(tmp_path, "training.num_steps=1").run(tmp_path / "run")


def test_mosaics_hold_quarters_of_four_images() -> None:
    images_B3HW = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    quarters = mosaics(images_B3HW)[0, 0, ::4, ::4].flatten().tolist()
    assert quarters == [0, 1, 2, 3]


def test_a_whole_source_held_out_leaves_nothing_to_train(images: Path) -> None:
    made = recipe(images, "training.num_steps=1")
    with pytest.raises(ValueError, match="held_out"):
        replace(made.source, held_out=1.0)
