"""Every key of the released files, sizes read off tensors, and errors that name what is wrong."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from swiftmask.models.mar import MAR, weights
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.network import Network, NetworkConfig

GOLDEN = Path(__file__).parents[2] / "golden"
KL = KLConfig(
    ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), resolution=8, z_channels=4
)  # as released ones, with 32 groups and the released scale


@pytest.fixture
def released_files(tmp_path: Path, network: Network) -> tuple[Path, Path, KLCodec]:
    """What upstream's trainer writes: raw and averaged weights, arguments, and a codec with leftovers."""
    codec = KLCodec(KL).eval()
    averaged = network.state_dict()
    raw = {key: value + 1 for key, value in averaged.items()}
    rest = {"optimizer": {"state": {}}, "epoch": 3, "scaler": {"scale": 1.0}}
    arguments = argparse.Namespace(lr=1e-4, model="mar_base")
    torch.save({"model": raw, "model_ema": averaged, "args": arguments, **rest}, tmp_path / "mar.pth")
    leftovers = {"loss.logvar": torch.zeros(1)}
    torch.save({"model": codec.state_dict() | leftovers, "global_step": 5}, tmp_path / "kl16.ckpt")
    return tmp_path / "mar.pth", tmp_path / "kl16.ckpt", codec


def manifest(name: str) -> tuple[dict[str, Tensor], int]:
    content = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    state = {key: torch.empty(shape, device="meta") for key, shape in content["tensors"].items()}
    return state, content["parameters"]


def assert_same(module: nn.Module, state: dict[str, Tensor], parameters: int) -> None:
    assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in state.items()}
    assert sum(parameter.numel() for parameter in module.parameters()) == parameters


def assert_equal(module: nn.Module, other: nn.Module) -> None:
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", ["mar-b", "mar-l", "mar-h"])
def test_released_networks(name: str) -> None:
    state, parameters = manifest(name.replace("-", "_"))
    assert weights.infer_network_config(state) == weights.RELEASED[name]
    with torch.device("meta"):
        assert_same(Network(weights.RELEASED[name]), state, parameters)


def test_released_codec() -> None:
    state, parameters = manifest("mar_kl16")
    assert weights.infer_kl_config(state) == weights.RELEASED_KL
    with torch.device("meta"):
        assert_same(KLCodec(weights.RELEASED_KL), state, parameters)


def test_released_files_give_the_averaged_weights(released_files, network) -> None:
    network_path, codec_path, codec = released_files
    model = MAR.from_released(network_path, codec_path, num_heads=4)
    assert_equal(model.network, network)
    assert_equal(model.codec, codec)
    assert model.codec.config == KL
    assert model.network.config == network.config
    assert (model.sampling.guidance, model.sampling.denoising_steps) == (2.9, 100)


def test_the_mirror_holds_the_weights_alone(released_files, network, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "mar-base.safetensors")
    save_file(released_files[2].state_dict(), tmp_path / "kl16.safetensors")
    found, codec = weights.read_released(
        tmp_path / "mar-base.safetensors", tmp_path / "kl16.safetensors", num_heads=4
    )
    assert_equal(found, network)
    assert_equal(codec, released_files[2])


def test_the_size_says_which_guidance_is_meant(released_files, monkeypatch, network) -> None:
    monkeypatch.setitem(weights.RELEASED, "mar-h", network.config)
    assert MAR.from_released(*released_files[:2], num_heads=4).sampling.guidance == 3.2


@pytest.mark.parametrize("which", [0, 1])
def test_truncated_files(released_files, which: int) -> None:
    path = released_files[which]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=rf"{path.name} is truncated.*download it again"):
        weights.read_released(*released_files[:2], num_heads=4)


def test_missing_files(released_files, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        weights.read_released(tmp_path / "nowhere.pth", released_files[1])
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        weights.read_model(tmp_path)


def test_code_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.ones(2)}, "args": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil\.pth holds Python objects .* refused \(weights_only=True\)"):
        weights.read_tensors(tmp_path / "evil.pth")


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": {"a": 1}}, [1, 2]])
def test_files_that_hold_no_weights(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth (holds no weights|is no checkpoint of a model): expected"):
        weights.read_tensors(tmp_path / "a.pth")


def test_the_two_files_swapped(released_files) -> None:
    network_path, codec_path, _ = released_files
    with pytest.raises(ValueError, match=r"kl16\.ckpt is not MAR: it lacks fake_latent"):
        weights.read_released(codec_path, network_path)
    with pytest.raises(
        ValueError, match=r"mar\.pth is not the KL autoencoder of MAR: it lacks encoder\.conv_in"
    ):
        weights.read_released(network_path, network_path, num_heads=4)


def test_another_autoencoder(released_files, tmp_path: Path) -> None:
    """A VQGAN says no variance; LDM's own f16 autoencoder attends in the decoder."""
    state = released_files[2].state_dict()
    vqgan = state | {"encoder.conv_out.weight": torch.zeros(4, 64, 3, 3)}
    torch.save({"model": vqgan}, tmp_path / "vqgan.ckpt")
    with pytest.raises(
        ValueError, match=r"gives 4 channels, expected mean and variance of 4: use kl16\.ckpt"
    ):
        weights.read_released_codec(tmp_path / "vqgan.ckpt")
    torch.save({"model": state | {"decoder.extra.weight": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt does not fit KLCodec: 1 unexpected: decoder\.extra"):
        weights.read_released_codec(tmp_path / "other.ckpt")


def test_missing_and_foreign_keys_are_named(network: Network, tmp_path: Path, released_files) -> None:
    state = network.state_dict()
    del state["decoder_norm.bias"]
    save_file(state | {"decoder_norm.beta": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: decoder_norm\.bias; 1 unexpected: decoder_norm\.beta"):
        weights.read_released(tmp_path / "a.safetensors", released_files[1], num_heads=4)


def test_heads_leave_no_trace(network: Network) -> None:
    with pytest.raises(ValueError, match="no released MAR has width 32: pass its num_heads"):
        weights.infer_network_config(network.state_dict())


def test_folder_round_trip(network: Network, codec: KLCodec, tmp_path: Path) -> None:
    model = MAR(network.half(), codec.half(), steps=7)
    model.save_pretrained(tmp_path, provenance={"recipe": "x"})
    found, found_codec, settings = weights.read_model(tmp_path)
    assert (found.config, found_codec.config) == (network.config, codec.config)
    assert (settings.model, settings.steps) == ("mar", 7)
    assert {p.dtype for module in (found, found_codec) for p in module.parameters()} == {torch.float32}
    assert_equal(network.float(), found)
    (tmp_path / "config.json").write_text('{"model": "mar", "network": {"widht": 3}, "codec": {}}')
    with pytest.raises(ValueError, match=r"unknown key network\.widht, network\.encoder_width is missing"):
        weights.read_model(tmp_path)


def test_random_network_depends_on_its_seed_alone(monkeypatch, sizes: NetworkConfig) -> None:
    monkeypatch.setitem(weights.RELEASED, "mar-b", replace(sizes, grid=2))
    first, again, other = (weights.random_mar("mar-b", seed=seed) for seed in (1, 1, 2))
    assert_equal(first, again)
    assert not torch.equal(first.mask_token, other.mask_token)
    with pytest.raises(ValueError, match="unknown released size 'mar-xl': choose one of mar-b, mar-l, mar-h"):
        weights.random_mar("mar-xl")
