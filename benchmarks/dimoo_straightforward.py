"""How much faster a full step of Lumina-DiMOO is than a straightforward one, on the same random weights.

    python benchmarks/dimoo_straightforward.py --layers 2 4 --dtype bfloat16 --json out.json

`Straightforward` does what the method's text says: one branch after the other, each projection a product of
its own, the head over every row and the whole vocabulary, of which the codes at masked rows are then cut out.
Released widths, 512x512 images, batch 1, the step in the middle of 64; both are timed in turn at two
depths, and what a layer costs more gives the figure for all 32. Drawing the tokens is the same on both sides.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.cli.random_models import dimoo_around
from swiftmask.core.decode import prepare_condition
from swiftmask.core.llama import LlamaBlock, Rotary
from swiftmask.core.protocol import Noise, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.tokens import CategoricalTokens, guide
from swiftmask.core.types import Canvas, Decision, Step
from swiftmask.evaluate.speed import Task, time_in_turn
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.layout import Layout, PromptCondition
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.unmask import by_plain_confidence
from swiftmask.models.lumina_dimoo.weights import RELEASED, random_backbone
from swiftmask.recipes.provenance import measurement

STEPS = 64


@dataclass(frozen=True, slots=True)
class Straightforward:
    """A guided step of one image with the model's numbers and none of the savings."""

    backbone: Backbone
    layout: Layout

    def decide(self, canvas: Canvas, condition: PromptCondition, step: Step, noise: Noise) -> Decision:
        """What the step decides.

        Args:
            condition: of one prompt, with the null branch.
        """
        logits_BMV = self.code_logits(canvas, condition, step.guidance)
        return by_plain_confidence(
            lambda positions_BM: CategoricalTokens(logits_BMV, positions_BM), canvas, step, noise
        )

    def code_logits(self, canvas: Canvas, condition: PromptCondition, guidance: float) -> Tensor:
        """Guided logits of the codes at masked positions: float32 [1, M, V]."""
        first, count = self.layout.vocabulary.first_code, self.layout.vocabulary.codebook_size
        branches = []
        for row, length in enumerate(condition.lengths):
            prompt_1P = condition.prompts_XP[row : row + 1, -length:]
            ids_1T = self.layout.sequence(prompt_1P, canvas.tokens_BL, canvas.masked_BL)
            columns_M = self.layout.columns(canvas.masked_positions(), ids_1T.shape[1])[0]
            branches.append(self._logits(ids_1T)[:, columns_M, first : first + count])
        return guide(torch.stack(branches), guidance).float()

    def _logits(self, ids_1T: Tensor) -> Tensor:
        """Of the whole vocabulary at every row."""
        transformer, config = self.backbone.model.transformer, self.backbone.config
        places_1T = torch.arange(ids_1T.shape[1], device=ids_1T.device)[None]
        rotary = Rotary.at(places_1T, config.head_width, config.rope_theta)
        x_1TD = transformer.wte(ids_1T)
        for block in self.backbone.blocks:
            x_1TD = _run(block, x_1TD, rotary)
        return F.linear(transformer.ln_f(x_1TD), transformer.ff_out.weight)


def _run(block: LlamaBlock, x_1TD: Tensor, rotary: Rotary) -> Tensor:
    normed_1TD = block.attn_norm(x_1TD)
    query, key, value = (
        F.linear(normed_1TD, weight).unflatten(-1, (block.num_heads, -1)).transpose(1, 2)
        for weight in block.qkv_weight.chunk(3)
    )
    out = F.scaled_dot_product_attention(rotary.turn(query), rotary.turn(key), value)
    x_1TD = x_1TD + block.attn_out(out.transpose(1, 2).flatten(2))
    normed_1TD = block.ff_norm(x_1TD)
    gate_1TF, up_1TF = (F.linear(normed_1TD, weight) for weight in block.gate_up_weight.chunk(2))
    return x_1TD + block.ff_out(F.silu(gate_1TF) * up_1TF)


def shallower(model: LuminaDiMOO, depth: int) -> LuminaDiMOO:
    """The same model with its first blocks only, sharing their weights."""
    with torch.device("meta"):
        backbone = Backbone(replace(model.backbone.config, depth=depth)).eval()
    whole, own = model.backbone.model.transformer, backbone.model.transformer
    own.wte, own.ln_f, own.ff_out = whole.wte, whole.ln_f, whole.ff_out
    own.blocks = nn.ModuleList(model.backbone.blocks[:depth])
    parts = (model.codec, model.prompts)
    return LuminaDiMOO(backbone, *parts, vocabulary=model.layout.vocabulary, grid=model.layout.grid)


def at_depth(depth: int, measured: dict[int, float]) -> float:
    """Milliseconds at a depth, on the line through those measured at the least and the greatest one."""
    shallow, deep = min(measured), max(measured)
    per_layer = (measured[deep] - measured[shallow]) / (deep - shallow)
    return measured[deep] + (depth - deep) * per_layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Medians of one full step of one image, in milliseconds.

    Attributes:
        measured: False for the figure computed from the depths that were.
    """

    layers: int
    ours_ms: float
    straightforward_ms: float
    ratio: float
    measured: bool


def measure(model: LuminaDiMOO, layers: Sequence[int], *, num_steps: int, repeats: int) -> list[Row]:
    """Rows at each of `layers` (at least two depths, none beyond the model's), and at the released depth.

    Errors: ValueError for fewer than two depths.
    """
    if len(set(layers)) < 2:
        raise ValueError(f"two depths tell what a layer costs, got {list(layers)}")
    tasks: dict[str, Task] = {}
    for depth in layers:
        ours, straightforward = step_tasks(shallower(model, depth), num_steps)
        tasks |= {f"ours {depth}": ours, f"straightforward {depth}": straightforward}
    timings = time_in_turn(tasks, model.device, repeats=repeats, warmup=1)
    ours_ms, plain_ms = (
        {depth: timings[f"{name} {depth}"].median_ms for depth in layers}
        for name in ("ours", "straightforward")
    )
    rows = [_row(depth, ours_ms[depth], plain_ms[depth], measured=True) for depth in layers]
    whole = RELEASED.depth
    return [*rows, _row(whole, at_depth(whole, ours_ms), at_depth(whole, plain_ms), measured=False)]


def step_tasks(model: LuminaDiMOO, num_steps: int) -> tuple[Task, Task]:
    """Ours and the straightforward one, on the step in the middle of a decode of one image."""
    schedule = model.schedule(num_steps, num_masked=model.spec.num_tokens, options=SamplingOptions())
    step = schedule[num_steps // 2]
    condition = prepare_condition(model, model.encode([""]), schedule)
    assert isinstance(condition, PromptCondition)
    known_1N = torch.randperm(model.spec.num_tokens)[None, step.num_masked_before :].to(model.device)
    canvas = model.blank(1).write(known_1N, known_1N % model.layout.vocabulary.codebook_size)
    noise = SeededNoise([0], model.spec.num_tokens, model.device)
    plain = Straightforward(model.backbone, model.layout)

    def ours() -> Decision:
        features_GBTD = model.features(canvas, condition)
        return model.unmask_rule(canvas, noise)(
            lambda positions_BM: model.tokens(features_GBTD, positions_BM, step.guidance), canvas, step, noise
        )

    return ours, lambda: plain.decide(canvas, condition, step, noise)


def _row(layers: int, ours_ms: float, straightforward_ms: float, *, measured: bool) -> Row:
    return Row(
        layers=layers,
        ours_ms=ours_ms,
        straightforward_ms=straightforward_ms,
        ratio=straightforward_ms / ours_ms,
        measured=measured,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here as well")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    dtype = getattr(torch, chosen.dtype)
    model = dimoo_around(random_backbone(max(chosen.layers), dtype=dtype, device=chosen.device))
    rows = measure(model, chosen.layers, num_steps=STEPS, repeats=chosen.repeats)
    for row in rows:
        print(
            f"{row.layers:2d} layers {row.straightforward_ms:9.1f} -> {row.ours_ms:9.1f} ms "
            f"({row.ratio:.2f}x{'' if row.measured else ', computed'})"
        )
    report = {
        "model": "lumina-dimoo (random weights), 512x512",
        "dtype": chosen.dtype,
        "batch": 1,
        "steps": STEPS,
        "repeats": chosen.repeats,
        **measurement(chosen.device),
        "rows": [asdict(row) for row in rows],
    }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
