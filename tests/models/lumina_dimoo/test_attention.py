"""No mask reaches attention, so that a GPU takes its flash kernels; the numbers are those of a mask."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from swiftmask.core import llama
from swiftmask.core.attention import attend
from swiftmask.methods.caching import MLCacheFeatures
from swiftmask.methods.shortcut import RotaryShortcut, RotaryShortcutConfig, ShortcutFeatures
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.training import BackboneTrainer, MaskedBatch
from swiftmask.pipeline import Pipeline

EQUAL = ["a red circle", "a blue circle"]
DIFFERENT = ["a red circle on a blue background", "circle", "a red circle"]
STEPS = 4


@dataclass
class Attention(TorchFunctionMode):
    """Counts the calls of attention, fused or plain, and the masks given to them."""

    calls: int = 0
    masks: int = 0
    num_keys: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self.calls += 1
            self.num_keys.append(args[1].shape[2])
            self.masks += len(args) > 3 or kwargs.get("attn_mask") is not None
        if name == "softmax" and args[0].ndim == 4:
            self.calls += 1
        self.masks += name in ("masked_fill", "where") and args[0].ndim == 4
        return func(*args, **kwargs)


def pipelines(model: LuminaDiMOO) -> dict[str, Pipeline]:
    torch.manual_seed(0)
    shortcut = RotaryShortcut(
        RotaryShortcutConfig(width=64, bottleneck_width=32, num_heads=4, mlp_width=112)
    ).eval()
    return {
        "full": Pipeline(model),
        "ml-cache": Pipeline(model, features_fn=MLCacheFeatures(model), full_steps=2),
        "shortcut": Pipeline(model, features_fn=ShortcutFeatures(model, shortcut), full_steps=2),
    }


@pytest.mark.parametrize("name", ["full", "ml-cache", "shortcut"])
@pytest.mark.parametrize("prompts", [EQUAL, DIFFERENT])
def test_no_mask_in_a_guided_decode(name: str, prompts: list[str], golden_dimoo: LuminaDiMOO) -> None:
    """Prompts longer than the null prompt, of one length and of several: a call per run of equal ones."""
    pipeline, seen = pipelines(golden_dimoo)[name], Attention()
    with seen:
        result = pipeline.generate(prompts=prompts, seeds=[3, 4, 5][: len(prompts)], steps=STEPS)
    assert result.cost.calls["branches"] == 2
    num_runs = 1 + len(set(golden_dimoo.encode(prompts).lengths))
    per_pass = num_runs * golden_dimoo.backbone.config.depth
    in_shortcut = 2 * 2 * num_runs  # two steps, each with attention to fresh tokens and to itself
    expected = {
        "full": STEPS * per_pass,
        "ml-cache": STEPS * per_pass,
        "shortcut": 2 * per_pass + in_shortcut,
    }
    assert (seen.calls, seen.masks) == (expected[name], 0)


@pytest.mark.parametrize("gradients", [False, True])
def test_no_mask_in_training(gradients: bool, golden_dimoo: LuminaDiMOO) -> None:
    trainer = BackboneTrainer(golden_dimoo.backbone, golden_dimoo.layout)
    prompts = [golden_dimoo.prompts.ids(text) for text in EQUAL * 4]
    generator = torch.Generator().manual_seed(1)
    batch = MaskedBatch.draw(torch.randint(24, (8, 16)), prompts, golden_dimoo.prompts.null_ids, generator)
    assert any(batch.condition.padding), "one prompt gave way to the null prompt"
    golden_dimoo.backbone.requires_grad_(gradients)
    with Attention() as seen:
        trainer(batch)
    golden_dimoo.backbone.requires_grad_(False)
    assert (seen.calls, seen.masks) == (2 * golden_dimoo.backbone.config.depth, 0)


@pytest.mark.parametrize("name", ["full", "ml-cache", "shortcut"])
@pytest.mark.parametrize("prompts", [EQUAL, DIFFERENT])
def test_features_are_those_of_masked_attention(
    name: str, prompts: list[str], golden_dimoo: LuminaDiMOO, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipelines(golden_dimoo)[name]

    def features() -> list[Tensor]:
        found: list[Tensor] = []
        pipeline.generate(
            prompts=prompts,
            seeds=[3, 4, 5][: len(prompts)],
            steps=STEPS,
            on_step=lambda record: found.append(record.features.features_GBTD.clone()),
        )
        return found

    ours = features()
    monkeypatch.setattr(llama, "attend_padded", masked)
    for mine, theirs in zip(ours, features(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def masked(q: Tensor, k: Tensor, v: Tensor, padding_X: Tensor) -> Tensor:
    """What `attend_padded` stands in for."""
    return attend(q, k, v, mask_B11S=(torch.arange(k.shape[2]) >= padding_X[:, None])[:, None, None])
