"""The estimate of a decode against the storage of one at its peak, and what is said if it is too much."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.methods.caching import MLCacheFeatures
from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, ShortcutFeatures
from swiftmask.models.lumina_dimoo import LuminaDiMOO, memory
from swiftmask.models.lumina_dimoo.layout import Vocabulary
from swiftmask.models.lumina_dimoo.memory import CodecNeed, Draw, Plan, working_bytes
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.prompts import WordPrompts
from swiftmask.models.lumina_dimoo.weights import RELEASED
from swiftmask.pipeline import Pipeline

RELEASED_PLAN = Plan(config=RELEASED, grid=(64, 64), dtype=torch.bfloat16)
WORDS = Vocabulary(
    mask=90,
    newline=60,
    image_start=61,
    image_end=62,
    answer_start=63,
    answer_end=64,
    first_code=91,
    codebook_size=64,
)


class LiveStorage(TorchDispatchMode):
    """The most bytes of storage, made since it was entered, that were alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given:
                self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(count for _, count in self._alive.values()))
        return out


def _storages(values: object) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def toy(dtype: torch.dtype, *, mlp_width: int = 192, num_codes: int = 64, channels: int = 8) -> LuminaDiMOO:
    words = replace(WORDS, codebook_size=num_codes)
    sizes = BackboneConfig(width=64, depth=3, num_heads=4, mlp_width=mlp_width, vocabulary_size=words.size)
    codec = VQConfig(
        block_out_channels=(channels, 8),
        layers_per_block=1,
        latent_channels=4,
        num_vq_embeddings=num_codes,
        norm_num_groups=4,
    )
    backbone = Backbone(sizes).to(dtype)
    prompts = WordPrompts(("a", "red", "circle"))
    model = LuminaDiMOO(backbone, build_vq_codec(codec), prompts, vocabulary=words, grid=(12, 12))
    return model.requires_grad_(False)


def measured_and_estimated(
    model: LuminaDiMOO, method: str, *, batch: int, guidance: float
) -> tuple[int, int]:
    shortcut = RotaryShortcut(RotaryShortcutConfig(width=64, bottleneck_width=32, num_heads=4, mlp_width=192))
    features_fn = {
        "backbone": None,
        "ml-cache": MLCacheFeatures(model),
        "shortcut": ShortcutFeatures(model, shortcut.requires_grad_(False)),
    }[method]
    pipeline = Pipeline(
        model,
        features_fn=features_fn,
        full_steps=None if features_fn is None else (0, 1, 3),
        sampling=SamplingOptions(guidance=guidance),
    )
    with LiveStorage() as live:
        pipeline.generate(prompts=["a red circle"] * batch, steps=4, output_type="pt")
    condition = model.encode(["a red circle"])
    draw = Draw(
        batch=batch,
        branches=2 if guidance > 1 else 1,
        num_prompt=max(*condition.lengths, len(condition.null_ids)),
        cached=method == "ml-cache",
    )
    plan = Plan(
        config=model.backbone.config,
        grid=(12, 12),
        dtype=model.backbone.model.transformer.wte.weight.dtype,
        codec=CodecNeed.of(model.codec),
        draw=draw,
    )
    return live.peak, working_bytes(plan)


@pytest.mark.parametrize("method", ["backbone", "ml-cache", "shortcut"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_estimate_is_a_decodes_peak(method: str, guidance: float, batch: int) -> None:
    """Never less than what was measured, and not twice as much."""
    peak, estimate = measured_and_estimated(toy(torch.float32), method, batch=batch, guidance=guidance)
    assert peak <= estimate < 2 * peak


@pytest.mark.parametrize("sizes", [{"mlp_width": 1024}, {"num_codes": 4096}, {"channels": 256}])
def test_whatever_part_takes_the_most(sizes: dict[str, int]) -> None:
    """The feed-forward layer, the head, the codec."""
    peak, estimate = measured_and_estimated(toy(torch.float32, **sizes), "backbone", batch=2, guidance=4.0)
    assert peak <= estimate < 2 * peak


def test_half_precision() -> None:
    """Where the rotations are in float32."""
    model = toy(torch.bfloat16, mlp_width=64)
    peak, estimate = measured_and_estimated(model, "backbone", batch=2, guidance=4.0)
    assert peak <= estimate < 2 * peak


def test_what_the_released_codec_holds() -> None:
    """Its activations, on an image of 128x128."""
    sizes = VQConfig(
        block_out_channels=(128, 256, 256, 512, 768),
        layers_per_block=2,
        latent_channels=64,
        num_vq_embeddings=8192,
    )
    codec = build_vq_codec(sizes).requires_grad_(False)
    with LiveStorage() as live:
        codec.decode(torch.zeros(1, 8, 8, dtype=torch.int64))
    assert live.peak == pytest.approx(128 * 128 * CodecNeed().per_pixel, rel=0.01)


def test_what_the_released_model_needs() -> None:
    def needed(**draw: Any) -> float:
        return working_bytes(replace(RELEASED_PLAN, draw=Draw(**draw))) / 1e9

    assert needed() == pytest.approx(3.4, abs=0.05)  # the codec's maps
    assert needed(batch=16) == pytest.approx(25, abs=1)
    assert needed(batch=16, branches=1) == pytest.approx(0.5 * needed(batch=16), rel=0.01)
    assert needed(cached=True) - needed() > 7, "keys and values of 32 blocks, of two steps"
    assert needed(batch=16, num_prompt=1024) > 1.15 * needed(batch=16)


def test_what_would_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 20 * 10**9
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    gpu = torch.device("cuda", 0)

    def said(**draw: Any) -> str:
        with pytest.raises(ValueError, match="beside the weights, but") as told:
            memory.check_room(replace(RELEASED_PLAN, draw=Draw(**draw)), gpu)
        return str(told.value)

    memory.check_room(RELEASED_PLAN, gpu)
    told = said(batch=16)
    assert told.startswith("decoding 16 images with guidance at 1024x1024 needs about 24.")
    assert told.endswith("on cuda:0 beside the weights, but 20.0 GB are free: take 12 at a time")
    memory.check_room(replace(RELEASED_PLAN, draw=Draw(batch=12)), gpu)
    assert said(batch=13).endswith("take 12 at a time")
    assert said(batch=4, cached=True).endswith("take 1 at a time")
    free = 6 * 10**9
    assert said(batch=8, cached=True).endswith("take 1 at a time without ml-cache")
    free = 10**9
    assert said().endswith("take a smaller size, or free some memory")
    free = None
    memory.check_room(replace(RELEASED_PLAN, draw=Draw(batch=999)), gpu)


def test_a_decode_is_weighed_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy(torch.float32)
    pipeline = Pipeline(model, features_fn=MLCacheFeatures(model), full_steps=(0,))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1)
    with pytest.raises(
        ValueError, match=r"decoding 2 images with guidance and ml-cache at 24x24 needs about"
    ):
        pipeline.generate(prompts=["circle"] * 2, steps=2)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9)
    assert len(pipeline.generate(prompts=["circle"] * 2, steps=2).seeds) == 2


def test_files_that_a_container_only_caches_count_as_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemAvailable: 1000 kB\n")
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 2500\nactive_file 500\n")
    assert memory.free_bytes(torch.device("cpu")) == 3500
