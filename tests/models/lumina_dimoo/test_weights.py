"""The released folder: sharded, strict, straight into the wanted precision, refused before it does harm."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swiftmask.api import load
from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.models.lumina_dimoo import LuminaDiMOO, memory
from swiftmask.models.lumina_dimoo.weights import RELEASED
from tests.released_layouts import DIMOO_BACKBONE as TINY
from tests.released_layouts import DIMOO_SETTINGS as SETTINGS
from tests.released_layouts import NULL, write_dimoo

PLAN = memory.Plan(config=RELEASED, grid=(64, 64), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint laid out as the released one."""
    return write_dimoo(tmp_path_factory.mktemp("released"))


@pytest.fixture
def copied(released: Path, tmp_path: Path) -> Path:
    """A copy of the folder, by links, whose files may be replaced."""
    for path in released.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(released)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(path)
    return tmp_path


def replace(path: Path, content: object) -> None:
    path.unlink()
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_released_folder(dtype: torch.dtype, released: Path) -> None:
    model = LuminaDiMOO.from_released(released, size=(32, 48), dtype=dtype)
    assert model.backbone.config == TINY
    assert model.spec.grid == (2, 3)
    assert {p.dtype for p in model.backbone.parameters()} == {dtype}
    assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    assert model.prompts.null_ids == NULL
    ours = model.backbone.state_dict()
    for path in released.glob("model-*.safetensors"):
        for key, value in load_file(path).items():
            assert torch.equal(ours[key], value.to(dtype)), key
    condition = model.with_null(model.encode(["image"]))
    assert model.features(model.blank(1), condition).isfinite().all()
    assert model.to_pixels(torch.zeros(1, 6, dtype=torch.int64)).shape == (1, 3, 32, 48)


def test_a_size_that_is_no_multiple_of_16(released: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 16, got 100x96"):
        LuminaDiMOO.from_released(released, size=(100, 96))


def test_missing_files_are_named(copied: Path, tmp_path: Path) -> None:
    (copied / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks model-2\.safetensors: download all shards"):
        LuminaDiMOO.from_released(copied)
    (copied / "model.safetensors.index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        LuminaDiMOO.from_released(copied)
    (copied / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json: expected a folder of Lumina-DiMOO"):
        LuminaDiMOO.from_released(copied)


def test_a_truncated_shard_and_a_wrong_index(copied: Path, released: Path) -> None:
    whole = (released / "model-2.safetensors").read_bytes()
    (copied / "model-2.safetensors").unlink()
    (copied / "model-2.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model-2\.safetensors is truncated"):
        LuminaDiMOO.from_released(copied)
    index = json.loads((copied / "model.safetensors.index.json").read_text())["weight_map"]
    replace(
        copied / "model.safetensors.index.json", {"weight_map": dict.fromkeys(index, "model-1.safetensors")}
    )
    with pytest.raises(ValueError, match=r"model-1\.safetensors lacks model\.transformer\.blocks"):
        LuminaDiMOO.from_released(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": None}, "lacks rope_theta"),
        ({"d_model": 16}, r"says width, layers and MLP \(16, 2, 12\), the weights say \(8, 2, 12\)"),
        ({"weight_tying": True}, "another architecture.*: weight_tying True instead of False"),
        ({"n_kv_heads": 1}, "another architecture.*: n_kv_heads 1 instead of 2"),
        ({"mask_token_id": 5}, "mask_token_id 5, expected 126336: this is another LLaDA"),
    ],
)
def test_another_config_is_refused(change: dict, message: str, copied: Path) -> None:
    settings = {key: value for key, value in (SETTINGS | change).items() if value is not None}
    replace(copied / "config.json", settings)
    with pytest.raises(ValueError, match=message):
        LuminaDiMOO.from_released(copied)


def test_too_little_memory_is_told_before_reading(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unread(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("swiftmask.models.lumina_dimoo.weights.fill", unread)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    with pytest.raises(ValueError, match=r"as bfloat16 needs about 0\.\d GB on cpu .* but 0\.0 GB are free"):
        LuminaDiMOO.from_released(copied)


def test_estimates_of_the_released_model() -> None:
    need = memory.estimate(PLAN)
    assert need.weights == pytest.approx(2 * 8_081_805_312 + 4 * 146_244_675, rel=1e-3)
    assert 0.5e9 < need.working < 5e9
    assert memory.estimate(dataclasses.replace(PLAN, dtype=torch.float32)).weights > 1.9 * need.weights
    assert need.host == 0


def test_estimates_with_blocks_in_host_memory() -> None:
    """On the device the blocks that stay and two places; elsewhere the others, in powers of two."""
    block = 2 * (4 * 4096**2 + 3 * 4096 * 12288)
    whole = memory.estimate(PLAN)
    for resident in (0, 12, 30):
        need = memory.estimate(dataclasses.replace(PLAN, blocks_on_device=resident))
        assert whole.weights - need.weights == (32 - resident - 2) * block
        assert (32 - resident) * block <= need.host <= 1.32 * (32 - resident) * block
    assert memory.estimate(dataclasses.replace(PLAN, blocks_on_device=32)) == whole
    assert memory.estimate(dataclasses.replace(PLAN, blocks_on_device=31)).weights == whole.weights + 0


def test_the_codecs_need_is_that_of_the_released_one() -> None:
    sizes = VQConfig(
        block_out_channels=(128, 256, 256, 512, 768),
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=8192,
    )
    with torch.device("meta"):
        codec = build_vq_codec(sizes)
    assert memory.CodecNeed.of(codec) == memory.RELEASED_CODEC


def test_what_would_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    free = {"cuda": 21 * 10**9, "cpu": 64 * 10**9}
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[device.type])
    gpu = torch.device("cuda", 0)
    memory.check_fits(PLAN, gpu)
    with pytest.raises(ValueError, match=r"21\.0 GB are free on cuda:0: take dtype=torch\.bfloat16"):
        memory.check_fits(dataclasses.replace(PLAN, dtype=torch.float32), gpu)
    free["cuda"] = 10 * 10**9
    with pytest.raises(
        ValueError, match=r"10\.0 GB are free on cuda:0: take blocks_on_device=\d+ with"
    ) as told:
        memory.check_fits(PLAN, gpu)
    resident = int(re.findall(r"blocks_on_device=(\d+)", str(told.value))[0])
    assert 0 < resident < 30
    memory.check_fits(dataclasses.replace(PLAN, blocks_on_device=resident), gpu)
    with pytest.raises(ValueError, match=f"take blocks_on_device={resident} "):
        memory.check_fits(dataclasses.replace(PLAN, blocks_on_device=resident + 1), gpu)
    free["cuda"] = 10**9
    with pytest.raises(ValueError, match=r"take device='cpu' with dtype=torch\.bfloat16 .*64\.0 GB are free"):
        memory.check_fits(PLAN, gpu)
    free |= {"cuda": 10 * 10**9, "cpu": 10**9}
    with pytest.raises(ValueError, match=r"10\.0 GB are free on cuda:0: take a device with"):
        memory.check_fits(PLAN, gpu)
    with pytest.raises(ValueError, match=r"host memory for 27 blocks, but 1\.0 GB are free on cpu"):
        memory.check_fits(dataclasses.replace(PLAN, blocks_on_device=5), gpu)


@pytest.mark.parametrize(("resident", "device"), [(33, "cuda"), (-1, "cuda"), (3, "cpu")])
def test_blocks_that_there_are_not_or_that_have_nowhere_to_wait(resident: int, device: str) -> None:
    plan = dataclasses.replace(PLAN, blocks_on_device=resident)
    with pytest.raises(ValueError, match=rf"must lie in 0\.\.32 and needs a device other .*, got {resident}"):
        memory.check_fits(plan, torch.device(device))


@pytest.mark.parametrize("content", [[], {"model": "lumina_dimoo"}])
def test_a_bad_config_of_ours(content: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"config\.json( is damaged|: grid is missing)"):
        LuminaDiMOO.from_pretrained(tmp_path)


def test_a_folder_of_ours_in_several_files(
    golden_dimoo: LuminaDiMOO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read straight into another precision, backbone and codec by prefix; foreign shapes are named."""
    monkeypatch.setattr("swiftmask.core.files.write_folder.__kwdefaults__", {"shard_bytes": 20_000})
    golden_dimoo.save_pretrained(tmp_path, provenance={})
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    again = LuminaDiMOO.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for key, value in golden_dimoo.backbone.state_dict().items():
        assert torch.equal(again.backbone.state_dict()[key], value.bfloat16()), key
    for key, value in golden_dimoo.codec.state_dict().items():
        assert torch.equal(again.codec.state_dict()[key], value), key
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["mlp_width"] += 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"mlp_width is 113, but the weights have no axis longer than 112"):
        LuminaDiMOO.from_pretrained(tmp_path)


def test_load_reads_both_kinds_of_folder_in_the_wanted_precision(
    released: Path, golden_dimoo: LuminaDiMOO, tmp_path: Path
) -> None:
    golden_dimoo.save_pretrained(tmp_path, provenance={})
    for folder, dtype, expected in (
        (released, None, torch.bfloat16),
        (released, "float32", torch.float32),
        (tmp_path, None, torch.float32),
        (tmp_path, "bfloat16", torch.bfloat16),
    ):
        model = load(folder, dtype=dtype).model
        assert isinstance(model, LuminaDiMOO)
        assert {p.dtype for p in model.backbone.parameters()} == {expected}
        assert {p.dtype for p in model.codec.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match=r"blocks_on_device must lie in 0\.\.2 and needs a device other"):
        load(released, blocks_on_device=1)


def test_other_models_have_no_blocks_to_keep_elsewhere(tiny_folder: Path) -> None:
    with pytest.raises(
        ValueError,
        match="blocks_on_device is for a released lumina_dimoo, not for a converted maskgit: leave it out",
    ):
        load(tiny_folder, blocks_on_device=1)
