"""`verify` on Meissonic's cases: it notices a wrong number in every one, and takes sizes from the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from verify.cases import Report, verify_folder

from swiftmask.models.meissonic.network import Transformer, TransformerConfig
from swiftmask.models.meissonic.rotary import places_of, rotary_at

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path in GOLDEN.glob("meissonic_*"):
        shutil.copy(path, tmp_path / path.name)
    return tmp_path


def one(folder: Path, name: str) -> Report:
    return next(report for report in verify_folder(folder, only=name) if report.name == name)


def wrong(report: Report) -> set[str]:
    return {check.name for check in report.checks if not check.ok}


def edit(folder: Path, name: str, key: str, tensor: Tensor) -> None:
    tensors = load_file(folder / f"{name}.safetensors")
    assert key in tensors
    save_file(tensors | {key: tensor}, folder / f"{name}.safetensors")


def test_a_wrong_number_is_noticed_wherever_it_is(folder: Path) -> None:
    for name in ("meissonic_transformer", "meissonic_scheduler", "meissonic_generate"):
        tensors = load_file(folder / f"{name}.safetensors")
        outputs = [key for key in tensors if key.startswith("out.")]
        for key in outputs:
            tensors[key] = tensors[key].clone()
            tensors[key].view(-1)[-1] += (
                1e-3 * tensors[key].abs().max() if tensors[key].is_floating_point() else 1
            )
        save_file(tensors, folder / f"{name}.safetensors")
        assert wrong(one(folder, name)) == {key.removeprefix("out.") for key in outputs}


def test_a_wrong_entry_of_the_recipe_is_noticed(folder: Path) -> None:
    path = folder / "meissonic_recipe_weights.json"
    content = json.loads(path.read_text())
    content["downsample=True,t=13"]["mid"][2] += 1e-3
    content["downsample=False,t=0"]["std"] += 1e-3
    content["scheduler_N=8"][4][1][15] = 3
    content["novelty"] = {}
    path.write_text(json.dumps(content))
    assert wrong(one(folder, "meissonic_recipe_weights")) == {
        "downsample=True,t=13 values",
        "downsample=False,t=0 moments",
        "scheduler_N=8 step 4",
        "novelty",
    }


def test_canvases_that_do_not_follow_the_schedule(folder: Path) -> None:
    canvas_BHW = load_file(folder / "meissonic_scheduler.safetensors")["in.step2.sample"].clone()
    canvas_BHW[0, 0, 0] = 39 if canvas_BHW[0, 0, 0] != 39 else 0
    edit(folder, "meissonic_scheduler", "in.step2.sample", canvas_BHW)
    assert "step 2 starts with" in one(folder, "meissonic_scheduler").message


def test_a_decode_without_its_weights(folder: Path) -> None:
    (folder / "meissonic_transformer.json").unlink()
    (folder / "meissonic_transformer.safetensors").unlink()
    message = one(folder, "meissonic_generate").message
    assert "needs the weights of meissonic_transformer: meissonic_transformer.json is missing" in message


@torch.no_grad()
def test_other_sizes(tmp_path: Path) -> None:
    """Without the halved grid, not square, with unequal axes: a case made with our own network."""
    config = {
        "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 3,
        "joint_attention_dim": 10, "axes_dims_rope": [2, 2, 4], "vocab_size": 20, "codebook_size": 12,
        "downsample": False, "upsample": False,
    }  # fmt: skip
    transformer = Transformer(
        TransformerConfig(
            num_heads=3,
            head_width=8,
            num_double_blocks=1,
            num_single_blocks=1,
            text_width=10,
            codebook_size=12,
            vocabulary_size=20,
            rotary_axes=(2, 2, 4),
            downsample=False,
        )
    )
    places_T3 = places_of((3, 5), 4).float()
    given = {
        "tokens": torch.randint(20, (2, 3, 5)),
        "encoder_hidden_states": torch.randn(2, 4, 10),
        "pooled": torch.randn(2, 24),
        "micro_conds": torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 6.0], [512.0, 768.0, 3.0, 1.0, 5.5]]),
        "timestep": torch.tensor([7.0, 3.0]),
        "txt_ids": places_T3[:4],
        "img_ids": places_T3[4:],
    }
    features_BLD = transformer(
        given["tokens"],
        transformer.condition(given["encoder_hidden_states"], given["pooled"], given["micro_conds"]),
        given["timestep"],
        rotary_at(places_T3, (2, 2, 4)),
    )
    logits_BKHW = transformer.logits(features_BLD).transpose(1, 2).unflatten(2, (3, 5))
    tensors = {f"in.{key}": value for key, value in given.items()}
    tensors |= {f"state.{key}": value for key, value in transformer.state_dict().items()}
    save_file(
        {key: value.contiguous() for key, value in (tensors | {"out.logits": logits_BKHW}).items()},
        tmp_path / "meissonic_transformer_b.safetensors",
    )
    (tmp_path / "meissonic_transformer_b.json").write_text(json.dumps({"config": config}))
    report = one(tmp_path, "meissonic_transformer_b")
    assert (report.message, report.status) == ("", "passed")
    (tmp_path / "meissonic_transformer_b.json").write_text(
        json.dumps({"config": config | {"upsample": True}})
    )
    assert "both on or both off" in one(tmp_path, "meissonic_transformer_b").message
