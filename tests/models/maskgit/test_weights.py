"""Every key of the released files, sizes read off tensors, and errors that name what is wrong."""

import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from verify.kinds.maskgit_vqgan import config_of

from swiftmask.models.maskgit import MaskGIT, weights
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = TransformerConfig(
    width=32, depth=2, num_heads=4, mlp_width=64, codebook_size=16, num_classes=3, grid=4
)
SMALL_CODEC = VQGANConfig(
    ch=32,
    ch_mult=(1, 2, 2),
    num_res_blocks=1,
    attn_resolutions=(64,),
    resolution=256,
    z_channels=16,
    n_embed=16,
    embed_dim=8,
)


@pytest.fixture
def released_files(tmp_path: Path) -> tuple[Path, Path, Transformer, VQGAN]:
    transformer, codec = Transformer(SMALL), VQGAN(SMALL_CODEC)
    transformer_path, codec_path = tmp_path / "MaskGIT.pth", tmp_path / "last.ckpt"
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    content = {"iter": 3, "global_epoch": 1, "model_state_dict": transformer.state_dict()}
    torch.save(content | {"optimizer_state_dict": optimizer}, transformer_path)
    lightning = codec.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(4)}
    torch.save({"epoch": 1, "state_dict": lightning}, codec_path)
    return transformer_path, codec_path, transformer, codec


def _manifest(name: str) -> tuple[dict[str, Tensor], int]:
    content = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in content["tensors"].items()}
    return state, content["parameters"]


def _assert_same(module: nn.Module, state: dict[str, Tensor], parameters: int) -> None:
    assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


@pytest.mark.parametrize("name", ["maskgit-256", "maskgit-512"])
def test_released_transformers(name: str) -> None:
    state, parameters = _manifest(f"{name.replace('-', '_')}_transformer")
    assert weights.infer_transformer_config(state) == weights.RELEASED[name]
    with torch.device("meta"):
        _assert_same(Transformer(weights.RELEASED[name]), state, parameters)


def test_released_codec() -> None:
    state, parameters = _manifest("maskgit_vqgan")
    assert weights.infer_vqgan_config(state) == weights.RELEASED_VQGAN
    with torch.device("meta"):
        _assert_same(VQGAN(weights.RELEASED_VQGAN), state, parameters)


def test_golden_sizes_are_inferred() -> None:
    tensors = load_file(GOLDEN / "maskgit_vqgan.safetensors")
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    config = weights.infer_vqgan_config(state, resolution=32)
    assert config == config_of(json.loads((GOLDEN / "maskgit_vqgan.json").read_text())["config"])
    # The nominal resolution only names levels: another one gives the same modules.
    weights.load_strict(VQGAN(weights.infer_vqgan_config(state)), state, source="golden")


def test_released_files_round_trip(released_files: tuple[Path, Path, Transformer, VQGAN]) -> None:
    transformer_path, codec_path, transformer, codec = released_files
    for path, module in ((transformer_path, transformer), (codec_path, codec)):
        state = weights.read_upstream(path)
        assert state.keys() == module.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in module.state_dict().items())


def test_lightning_callbacks_are_read_without_running_them(tmp_path: Path) -> None:
    """A `last.ckpt` keys its callback states by class; those classes become inert stand-ins."""
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks.model_checkpoint"})
    path = tmp_path / "last.ckpt"
    _save_with_class(
        path, callback, {"state_dict": {"a": torch.ones(2)}, "callbacks": {callback: {"best": 1}}}
    )
    assert torch.equal(weights.read_upstream(path)["a"], torch.ones(2))


def test_code_in_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"model_state_dict": {"a": torch.ones(2)}, "args": Path("x")}, path)
    with pytest.raises(ValueError, match=r"evil\.pth holds Python objects .* refused \(weights_only=True\)"):
        weights.read_upstream(path)


def test_converted_folder_holds_the_same_networks(
    released_files: tuple[Path, Path, Transformer, VQGAN], tmp_path: Path
) -> None:
    transformer_path, codec_path, transformer, codec = released_files
    folder = tmp_path / "converted"
    model = MaskGIT.from_released(transformer_path, codec_path, num_heads=4, codebook_size=16)
    model.save_pretrained(folder, provenance={"converted_from": "test"})
    again, codec_again, settings = weights.read_model(folder)
    assert settings.sampling == model.sampling
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "provenance.json",
    ]
    assert again.config == SMALL
    assert codec_again.config == SMALL_CODEC
    ids_BT = torch.randint(0, SMALL.vocabulary_size, (2, SMALL.sequence_length))
    with torch.no_grad():
        assert torch.equal(again(ids_BT), transformer.eval()(ids_BT))
        codes_BHW = ids_BT[:, :16].unflatten(1, (4, 4)) % 16
        assert torch.equal(codec_again.decode(codes_BHW), codec.eval().decode(codes_BHW))
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_grid_says_which_released_sampling_is_meant(tmp_path: Path) -> None:
    grid_16 = replace(SMALL, grid=16)
    torch.save(Transformer(grid_16).state_dict(), tmp_path / "a.pth")
    torch.save(VQGAN(SMALL_CODEC).state_dict(), tmp_path / "last.ckpt")
    model = MaskGIT.from_released(tmp_path / "a.pth", tmp_path / "last.ckpt", num_heads=4, codebook_size=16)
    assert (model.sampling.guidance, model.sampling.choice_temperature) == (4.0, 4.5)


def test_half_precision_folder_loads_as_float32(tmp_path: Path) -> None:
    model = MaskGIT(Transformer(SMALL).half(), VQGAN(SMALL_CODEC).half())
    model.save_pretrained(tmp_path, provenance={})
    transformer, codec, _ = weights.read_model(tmp_path)
    assert {p.dtype for module in (transformer, codec) for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["MaskGIT.pth", "last.ckpt"])
def test_truncated_pickle(released_files: tuple[Path, Path, Transformer, VQGAN], name: str) -> None:
    path = released_files[0].with_name(name)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"{name} is truncated"):
        weights.read_upstream(path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"\x80\x02", pickle.dumps([1, 2], protocol=2)]
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.pth"):
        weights.read_upstream(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        weights.read_upstream(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        weights.read_upstream(tmp_path / "nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        weights.read_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model": "maskgit", "transformer": {"widht": 3}, "codec": {}}')
    with pytest.raises(ValueError, match="unknown key transformer.widht"):
        weights.read_model(tmp_path)


def test_strict_loading_names_every_fault() -> None:
    state = dict(Transformer(SMALL).state_dict())
    del state["pos_emb"]
    state["pos_embedding"] = torch.zeros(1)
    state["bias"] = torch.zeros(5, 21)
    with pytest.raises(ValueError) as error:
        weights.load_strict(Transformer(SMALL), state, source="x.pth")
    message = str(error.value)
    assert "x.pth does not fit Transformer" in message
    assert "1 missing: pos_emb;" in message
    assert "1 unexpected: pos_embedding;" in message
    assert "bias (expected (17, 21), got (5, 21))" in message


def test_long_lists_of_keys_are_cut() -> None:
    with pytest.raises(ValueError, match=r"\d+ missing: pos_emb, bias, .* and \d+ more"):
        weights.load_strict(Transformer(SMALL), {}, source="x.pth")


@pytest.mark.parametrize("key", ["cls_emb.weight", "reg_tokens.weight", "transformer.layers.0.mlp.1.weight"])
def test_the_newer_family_is_recognised(key: str) -> None:
    for infer in (weights.infer_transformer_config, weights.infer_vqgan_config):
        with pytest.raises(ValueError, match=r"adaLN.*another architecture.*v1\.0"):
            infer({key: torch.zeros(1), "tok_emb.weight": torch.zeros(3, 3)}, source="new.pth")


def test_other_architectures_are_named() -> None:
    with pytest.raises(ValueError, match=r"q\.ckpt is not the MaskGIT v1\.0 transformer: it lacks pos_emb"):
        weights.infer_transformer_config(VQGAN(SMALL_CODEC).state_dict(), source="q.ckpt")
    with pytest.raises(ValueError, match=r"t\.pth is not the taming VQGAN"):
        weights.infer_vqgan_config(Transformer(SMALL).state_dict(), source="t.pth")
    with pytest.raises(ValueError, match="pass its codebook_size"):
        weights.infer_transformer_config(Transformer(SMALL).state_dict())


def test_random_transformer_depends_on_its_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(weights.RELEASED, "maskgit-256", replace(SMALL, grid=2))
    first, again, other = (weights.random_transformer("maskgit-256", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.pos_emb, again.pos_emb)
    assert not torch.equal(first.pos_emb, other.pos_emb)
    with pytest.raises(ValueError, match="unknown released size 'maskgit-1024'"):
        weights.random_transformer("maskgit-1024")


def _save_with_class(path: Path, cls: type, content: dict[str, object]) -> None:
    """Pickle a class that is importable only while saving, as on the machine that trained the model."""
    names = cls.__module__.split(".")
    modules = {".".join(names[: i + 1]): types.ModuleType(names[i]) for i in range(len(names))}
    setattr(modules[cls.__module__], cls.__name__, cls)
    sys.modules |= modules
    try:
        torch.save(content, path)
    finally:
        for name in modules:
            del sys.modules[name]
