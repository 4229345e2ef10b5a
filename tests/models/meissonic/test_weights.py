"""Every key of the released files, the released layout in its variants, errors that name what is wrong."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from swiftmask.core.protocol import SamplingOptions
from swiftmask.models.meissonic import Meissonic, weights

GOLDEN = Path(__file__).parents[2] / "golden"
FILE = "diffusion_pytorch_model.safetensors"


def assert_equal(found: nn.Module, expected: nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("name", ["meissonic-1024", "meissonic-512"])
def test_released_sizes(name: str) -> None:
    content = json.loads((GOLDEN / "manifests" / f"{name.replace('-', '_')}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in content["tensors"].items()}
    assert weights.infer_transformer_config(state) == weights.RELEASED[name]


def test_a_released_folder(released: Path, model: Meissonic) -> None:
    found = Meissonic.from_released(released)
    assert_equal(found, model)
    assert found.transformer.config == model.transformer.config
    assert found.text_encoder.config == model.text_encoder.config
    assert found.codec.config == model.codec.config
    assert found.size == (128, 128)  # the released backbones run on 32x32
    assert not any(value.is_meta for value in (*found.parameters(), *found.buffers()))
    small = found.sized(8, 8)
    ids_XT = small.text_encoder.tokenizer(["a red circle"])
    torch.testing.assert_close(small.text_encoder(ids_XT).pooled_XD, model.text_encoder(ids_XT).pooled_XD)


def test_half_precision_files_under_training_names(released: Path, model: Meissonic) -> None:
    """A folder with the fp16 variant alone, its names as compiling and wrapping left them."""
    folder = released / "transformer"
    state = {f"module._orig_mod.{key}": value.half() for key, value in load_file(folder / FILE).items()}
    (folder / FILE).unlink()
    save_file(state, folder / "diffusion_pytorch_model.fp16.safetensors")
    found = weights.read_released_transformer(folder)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    assert_equal(found.half(), copy.deepcopy(model.transformer).half())


def test_weights_win_over_a_stale_config(released: Path, model: Meissonic) -> None:
    """An early config said the grid is halved where the weights have no such layers."""
    state = load_file(released / "transformer" / FILE)
    plain = {key: value for key, value in state.items() if not key.startswith(("down_block", "up_block"))}
    save_file(plain, released / "transformer" / FILE)
    edit(released / "transformer" / "config.json", downsample=True, upsample=True)
    found = Meissonic.from_released(released)
    assert found.transformer.config == replace(model.transformer.config, downsample=False)
    assert found.size == (64, 64)


def test_a_whole_clip_model_for_text_encoder(released: Path, tmp_path: Path, model: Meissonic) -> None:
    """As laion's: text and images in one file, sizes under text_config, a stale projection_dim there."""
    folder = tmp_path / "clip"
    folder.mkdir()
    state = {key: 2 * value for key, value in model.text_encoder.clip.state_dict().items()}
    state |= {"vision_model.embeddings.class_embedding": torch.ones(3), "logit_scale": torch.ones(1)}
    state["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    save_file(state, folder / "model.safetensors")
    text = {"num_attention_heads": 2, "projection_dim": 512, "eos_token_id": 0, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text}))
    found = Meissonic.from_released(released, text_encoder=folder).text_encoder
    assert found.config == model.text_encoder.config
    assert torch.equal(found.clip.text_projection.weight, 2 * model.text_encoder.clip.text_projection.weight)


def test_another_architecture(released: Path) -> None:
    edit(released / "transformer" / "config.json", _class_name="SymmetricTransformer2DModel")
    with pytest.raises(ValueError, match="holds a SymmetricTransformer2DModel, another architecture"):
        Meissonic.from_released(released)


def test_another_schedule(released: Path) -> None:
    edit(released / "scheduler" / "scheduler_config.json", masking_schedule="linear")
    with pytest.raises(ValueError, match="expected a cosine schedule and mask id 39, got linear and 39"):
        Meissonic.from_released(released)


@pytest.mark.parametrize("part", ["transformer", "vqvae", "text_encoder"])
def test_missing_weights(released: Path, part: str) -> None:
    for path in (released / part).glob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"no weights in .*{part}: expected .*model\.safetensors"):
        Meissonic.from_released(released)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("transformer", "is not the Meissonic transformer: it lacks transformer_blocks.0.attn.norm_q"),
        ("vqvae", "does not fit VQModel: .*encoder"),
        ("text_encoder", "is not a CLIP text encoder with projection: it lacks text_model"),
    ],
)
def test_foreign_weights_are_named(released: Path, part: str, message: str) -> None:
    (path,) = (released / part).glob("*.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=message):
        Meissonic.from_released(released)


def test_damaged_configs(released: Path) -> None:
    path = released / "vqvae" / "config.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="is no config of a VQModel"):
        Meissonic.from_released(released)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"vqvae/config\.json is damaged"):
        Meissonic.from_released(released)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*vqvae/config\.json: download the whole folder"):
        Meissonic.from_released(released)


def test_rotary_axes_leave_no_trace(model: Meissonic) -> None:
    with pytest.raises(ValueError, match="no released Meissonic has heads of 12: pass its rotary_axes"):
        weights.infer_transformer_config(model.transformer.state_dict())


def test_folder_round_trip(model: Meissonic, tmp_path: Path) -> None:
    sampling = SamplingOptions(guidance=4.0, temperature=0.9, choice_temperature=1.0)
    other = Meissonic(model.transformer, model.text_encoder, model.codec, size=(8, 16), sampling=sampling)
    other.save_pretrained(tmp_path, provenance={"recipe": "x"}, dtype=torch.float16)
    again = Meissonic.from_pretrained(tmp_path)
    assert (again.size, again.sampling) == ((8, 16), sampling)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert not any(value.is_meta for value in (*again.parameters(), *again.buffers()))
    assert torch.equal(
        again.transformer.embed.embeddings.weight, model.transformer.embed.embeddings.weight.half().float()
    )
    edit(tmp_path / "config.json", size=8)
    with pytest.raises(
        ValueError, match=r"config\.json: size must be 2 whole numbers between 1 and 16_384, got 8"
    ):
        Meissonic.from_pretrained(tmp_path)
    edit(tmp_path / "config.json", codec={"widht": 3})
    with pytest.raises(ValueError, match=r"unknown key codec\.widht, codec\.block_out_channels is missing"):
        Meissonic.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: expected a model folder"):
        Meissonic.from_pretrained(tmp_path)


def test_random_transformer_depends_on_its_seed_alone(monkeypatch, model: Meissonic) -> None:
    monkeypatch.setitem(weights.RELEASED, "meissonic-512", model.transformer.config)
    first, again, other = (weights.random_transformer("meissonic-512", seed=seed) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert not torch.equal(first.context_embedder.weight, other.context_embedder.weight)
    with pytest.raises(ValueError, match="unknown released size 'monetico': choose one of meissonic-512"):
        weights.random_transformer("monetico")
