"""The recipes of dimoo-scenes at toy size: from nothing to a model folder, its shortcut, and pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import swiftmask
from swiftmask.api import CACHINGS
from swiftmask.cli import main
from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.prompts import WordPrompts
from swiftmask.recipes import dimoo_scenes, dimoo_scenes_shortcut
from swiftmask.recipes.captioned_scenes import WORDS, World
from swiftmask.recipes.dimoo_scenes import DiMOORecipe
from swiftmask.recipes.shortcut import ShortcutRecipe
from swiftmask.training.setup import TrainingConfig

FEW = TrainingConfig(num_steps=2, batch_size=8, precision="no")
CODEC = VQConfig(
    block_out_channels=(4, 4, 8),
    layers_per_block=1,
    latent_channels=4,
    num_vq_embeddings=16,
    vq_embed_dim=2,
    norm_num_groups=2,
)


def tiny() -> DiMOORecipe:
    real = dimoo_scenes.recipe()
    codec = replace(real.codec, codec=CODEC, num_codes=8, resolution=16, training=FEW)
    backbone = replace(
        real.backbone,
        width=16,
        depth=1,
        num_heads=2,
        mlp_width=16,
        vocabulary_size=real.backbone.vocabulary_size - real.codec.num_codes + 8,
    )
    training = replace(FEW, precision="bf16-weights", muon_learning_rate=1e-3)
    return replace(real, codec=codec, backbone=backbone, training=training, num_pictures=16)


def tiny_shortcut(base: Path) -> ShortcutRecipe:
    real = dimoo_scenes_shortcut.recipe()
    return replace(
        real,
        rounds=replace(
            real.rounds, images_per_round=3, images_per_update=2, updates_per_round=2, step_counts=(3, 4)
        ),
        training=replace(FEW, num_steps=3, precision="bf16"),
        model=str(base),
        full_steps=2,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of both recipes: `base` and `shortcut`."""
    folder = tmp_path_factory.mktemp("runs")
    base = tiny().run(folder / "base")
    tiny_shortcut(base).run(folder / "shortcut")
    return folder


def captions(count: int = 2) -> list[str]:
    return World().captions(torch.arange(count))


def test_the_trained_folder_draws(trained: Path) -> None:
    pipeline = swiftmask.load(trained / "base" / "model")
    assert isinstance(pipeline.model, LuminaDiMOO)
    assert pipeline.model.spec.grid == (4, 4)
    assert pipeline.model.spec.codebook_size == 8
    result = pipeline.generate(prompts=captions(), steps=3, output_type="pt")
    assert isinstance(result.images, Tensor)
    assert result.images.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="unknown word 'hexagonal'"):
        pipeline.generate(prompts=["a hexagonal circle"])


def test_the_trained_shortcut_accelerates_it(trained: Path) -> None:
    pipeline = swiftmask.load(trained / "base" / "model")
    fast = swiftmask.accelerate(pipeline, shortcut=trained / "shortcut" / "model")
    result = fast.generate(prompts=captions(), steps=6, output_type="pt")
    assert result.cost.calls["backbone"] == 2, "the budget its config recommends"
    assert result.cost.calls["shortcut"] == 4
    assert result.cost.flops < pipeline.flops(pipeline.schedule(6))


def test_the_command_line_draws_with_the_bundled_pair(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "dimoo-scenes").symlink_to(trained / "base" / "model")
    (weights / "dimoo-scenes-shortcut").symlink_to(trained / "shortcut" / "model")
    monkeypatch.setattr("swiftmask.registry.WEIGHTS", weights)
    out, prompt = tmp_path / "pictures", captions(1)[0]
    wanted = ["generate", "dimoo-scenes", "--prompt", prompt, "--shortcut", "auto", "--full-steps", "6"]
    with pytest.raises(SystemExit) as stop:
        main([*wanted, "--steps", "8", "--out", str(out)])
    assert stop.value.code == 0
    summary = json.loads((out / "generate.json").read_text())
    assert summary["cost"]["calls_per_picture"]["shortcut"] == 2
    assert summary["pictures"][0]["what"] == prompt
    assert (out / summary["pictures"][0]["file"]).is_file()


@pytest.mark.parametrize("caching", sorted(CACHINGS))
def test_every_rival_runs_on_it(caching: str, trained: Path) -> None:
    rival = swiftmask.accelerate(swiftmask.load(trained / "base" / "model"), caching=caching, full_steps=2)
    result = rival.generate(prompts=captions(), steps=3, output_type="pt")
    assert result.cost.calls["backbone"] == 2
    assert (result.trajectory.tokens_BL < 8).all()


def test_a_run_of_the_codec_serves_several_models(trained: Path, tmp_path: Path) -> None:
    """Finished, it is not trained again; with other settings it is refused."""
    shared = replace(tiny(), codec_run=str(trained / "base" / "tokenizer"), name="other")
    checkpoint = trained / "base" / "tokenizer" / "checkpoint.safetensors"
    before = checkpoint.stat().st_mtime_ns
    folder = shared.run(tmp_path)
    assert checkpoint.stat().st_mtime_ns == before
    assert not (tmp_path / "tokenizer").exists()
    ours, theirs = (swiftmask.load(f).model for f in (folder, trained / "base" / "model"))
    assert isinstance(ours, LuminaDiMOO)
    assert isinstance(theirs, LuminaDiMOO)
    assert all(torch.equal(v, theirs.codec.state_dict()[k]) for k, v in ours.codec.state_dict().items())
    changed = replace(shared, codec=replace(shared.codec, training=replace(FEW, batch_size=4)))
    with pytest.raises(ValueError, match="other settings"):
        changed.run(tmp_path)


def test_a_run_goes_on_from_a_model(trained: Path, tmp_path: Path) -> None:
    """Its codec is kept, its backbone is trained further, and the new folder says where it comes from."""
    initial = trained / "base" / "model"
    again = replace(tiny(), initial=str(initial))
    folder = again.run(tmp_path)
    before, after = (swiftmask.load(f).model.state_dict() for f in (initial, folder))
    changed = {key.split(".")[0] for key, value in before.items() if not torch.equal(value, after[key])}
    assert changed == {"backbone"}
    assert not (tmp_path / "tokenizer").exists()
    made_by = [json.loads((f / "provenance.json").read_text()) for f in (initial, folder)]
    assert made_by[1]["initial"] == made_by[0]


def test_an_initial_model_of_other_sizes_is_refused(trained: Path, tmp_path: Path) -> None:
    recipe = replace(tiny(), initial=str(trained / "base" / "model"))
    wider = replace(recipe, backbone=replace(recipe.backbone, mlp_width=32))
    with pytest.raises(ValueError, match=r"the model in .* is of other sizes than this recipe's \(initial\)"):
        wider.run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no initial in .* \(swiftmask train dimoo-scenes\)"):
        replace(recipe, initial=str(tmp_path)).run(tmp_path)


def test_two_processes_leave_one_model(tmp_path: Path, in_processes: Callable[..., None]) -> None:
    """The first draws the pictures for both, and both may write what they trained together."""
    in_processes(Path(__file__).with_name("one_of_several.py"), tmp_path, count=2)
    assert isinstance(swiftmask.load(tmp_path / "model").model, LuminaDiMOO)
    assert not list(tmp_path.rglob("*.partial"))
    logged = (tmp_path / "backbone" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == [2]


def test_a_batch_is_a_function_of_its_step(tmp_path: Path) -> None:
    recipe = tiny()
    pictures = recipe.pictures(build_vq_codec(replace(CODEC, num_vq_embeddings=8)), tmp_path)
    first, same, other = (recipe.batch(pictures, step, 0, 1) for step in (5, 5, 6))
    assert torch.equal(first.codes_BL, same.codes_BL)
    assert torch.equal(first.masked_BL, same.masked_BL)
    assert torch.equal(first.condition.prompts_XP, same.condition.prompts_XP)
    assert not torch.equal(first.codes_BL, other.codes_BL)
    assert first.codes_BL.shape == (8, 16)


def test_cached_captions_are_the_prompts_of_the_model() -> None:
    texts, words = World(simple_percent=10).captions(torch.arange(40)), WordPrompts(WORDS)
    rows = dimoo_scenes.prompt_ids(texts).tolist()
    assert [[i for i in row if i >= 0] for row in rows] == [words.ids(text) for text in texts]


def test_a_vocabulary_that_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    recipe = tiny()
    misfit = replace(recipe, codec=replace(recipe.codec, num_codes=7))
    with pytest.raises(
        ValueError, match=r"vocabulary_size must be \d+ \(words, specials and codec.num_codes\)"
    ):
        misfit.run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_real_model_fits_into_eight_megabytes() -> None:
    """As float16, beside which a config of a few kilobytes hardly counts."""
    recipe = dimoo_scenes.recipe()
    recipe.check_fit()
    with torch.device("meta"):
        networks = (
            Backbone(recipe.backbone),
            build_vq_codec(replace(recipe.codec.codec, num_vq_embeddings=recipe.codec.num_codes)),
        )
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert 2_000_000 < sizes[0] < 3_000_000
    assert sum(sizes) < 4_000_000
