"""What a decode step of MAR costs with the straightforward sampler, with ours, and with a MARVAL student.

    python benchmarks/mar_straightforward.py mar-b --batch 1 16 --dtype float32 bfloat16 --json out.json
    python benchmarks/mar_straightforward.py mar-scenes --ar-steps 16 --steps 2 6 10 14

`StraightforwardTokens` does at every denoising step what the method's text says: embeds the timestep and the
condition, computes each block's modulation on its own, looks the coefficients up in float64 tables, and under
guidance carries two whole chains of tokens, the second for nothing. Both samplers, the student's one call,
and the backbone with and without its second branch, are timed in turn in one run at a few steps spread over a
decode; medians. The straightforward sampler draws its noise with `torch.randn`, the others from the streams
of the package. Speed does not depend on weights: models of released sizes have random ones, and the student
is an untrained copy of the model.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftmask.api import load
from swiftmask.cli.random_models import random_pipeline
from swiftmask.core.protocol import Noise, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.tokens import gather_rows, guide
from swiftmask.core.types import Canvas, Step
from swiftmask.evaluate.speed import Task, time_in_turn
from swiftmask.methods.marval import Student, make_student
from swiftmask.models.mar import MAR
from swiftmask.models.mar.diffusion import Process, respaced, respaced_timesteps
from swiftmask.models.mar.head import HeadNetwork
from swiftmask.models.mar.weights import RELEASED
from swiftmask.recipes.provenance import measurement

GUIDANCE = 2.9


@dataclass(frozen=True, slots=True)
class StraightforwardTokens:
    """A `TokenDistribution` with the head's numbers and none of the savings; ancestral sampling only."""

    head: HeadNetwork
    context_GBMD: Tensor
    positions_BM: Tensor
    guidance: float

    def sample(self, noise: Noise, step: Step) -> tuple[Tensor, None]:
        """Tokens, float32 [B, M, C]."""
        assert step.denoising is not None
        process = respaced(respaced_timesteps(step.denoising.num_steps))
        num_branches, context_YD = self.context_GBMD.shape[0], self.context_GBMD.flatten(0, 2)
        token_YC = self._normal(noise).repeat(num_branches, 1)
        for index in reversed(range(step.denoising.num_steps)):
            first_XC = token_YC.chunk(num_branches)[0]
            predicted_YE = self._predict(
                first_XC.repeat(num_branches, 1), int(process.timesteps_S[index]), context_YD
            )
            noise_YC, spread_YC = predicted_YE.float().chunk(2, dim=-1)
            guided_XC = guide(noise_YC.unflatten(0, (num_branches, -1)), self.guidance)
            mean_YC, deviation_YC = _posterior(
                process, index, token_YC, guided_XC.repeat(num_branches, 1), spread_YC
            )
            token_YC = mean_YC
            if index > 0:
                fresh_XC = self._normal(noise)
                unused = [torch.randn_like(fresh_XC) for _ in range(num_branches - 1)]
                token_YC = token_YC + deviation_YC * torch.cat([fresh_XC, *unused]) * step.temperature
        return token_YC.chunk(num_branches)[0].unflatten(0, self.positions_BM.shape), None

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> None:
        return None

    def _normal(self, noise: Noise) -> Tensor:
        return noise.normal(self.positions_BM, self.head.channels).flatten(0, 1)

    def _predict(self, noisy_YC: Tensor, timestep: int, context_YD: Tensor) -> Tensor:
        head, dtype = self.head, self.head.input_proj.weight.dtype
        timesteps_Y = torch.full((len(noisy_YC),), timestep, device=noisy_YC.device)
        embedded_YW = head.time_embed(timesteps_Y) + head.cond_embed(context_YD.to(dtype))
        h_YW = head.input_proj(noisy_YC.to(dtype))
        for block in head.res_blocks:
            shift_YW, scale_YW, gate_YW = block.adaLN_modulation(embedded_YW).chunk(3, dim=-1)  # type: ignore[operator]
            normed_YW = F.layer_norm(h_YW, (head.width,), block.in_ln.weight, block.in_ln.bias, 1e-6)  # type: ignore[union-attr]
            h_YW = h_YW + gate_YW * block.mlp(normed_YW * (1 + scale_YW) + shift_YW)  # type: ignore[operator]
        shift_YW, scale_YW = head.final_layer.adaLN_modulation(embedded_YW).chunk(2, dim=-1)
        normed_YW = head.final_layer.norm_final(h_YW)
        return head.final_layer.linear(normed_YW * (1 + scale_YW) + shift_YW)


def _posterior(
    process: Process, index: int, token_YC: Tensor, noise_YC: Tensor, spread_YC: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of one ancestral step, every coefficient looked up in its table."""

    def at(table_S: Tensor) -> Tensor:
        return table_S.to(token_YC.device)[index].float().expand_as(token_YC)

    clean_YC = at((1 / process.signal_S).sqrt()) * token_YC - at((1 / process.signal_S - 1).sqrt()) * noise_YC
    mean_YC = at(process.mean_from_clean_S) * clean_YC + at(process.mean_from_noisy_S) * token_YC
    share_YC = (spread_YC + 1) / 2
    log_variance_YC = share_YC * at(process.betas_S.log())
    log_variance_YC = log_variance_YC + (1 - share_YC) * at(process.posterior_log_variance_S)
    return mean_YC, torch.exp(0.5 * log_variance_YC)


class TorchNoise:
    """Normals from torch's own generator, as the reference draws them."""

    def normal(self, positions_BM: Tensor, channels: int) -> Tensor:
        return torch.randn(*positions_BM.shape, channels, device=positions_BM.device)

    def permutation(self, num_tokens: int) -> Tensor:
        raise NotImplementedError("only normals are drawn here")

    def categorical(self, probs_BMV: Tensor, positions_BM: Tensor) -> Tensor:
        raise NotImplementedError("only normals are drawn here")

    def gumbel(self, positions_BM: Tensor) -> Tensor:
        raise NotImplementedError("only normals are drawn here")

    def gumbel_per_code(self, positions_BM: Tensor, num_codes: int) -> Tensor:
        raise NotImplementedError("only normals are drawn here")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Milliseconds of a batch, medians added over the timed decode steps.

    Attributes:
        head_ratio: straightforward sampler to ours, without the backbone; `step_ratio` counts it in both.
        student_ratio: our step to the student's, both with their backbones; `student_ratio_straightforward`
            that of the straightforward step.
    """

    batch: int
    dtype: str
    ours_ms: float
    straightforward_ms: float
    backbone_ms: float
    student_ms: float
    student_backbone_ms: float
    head_ratio: float
    step_ratio: float
    student_ratio: float
    student_ratio_straightforward: float


def measure(
    model: MAR, *, batch: int, num_steps: int, num_denoising: int, timed: Sequence[int], repeats: int
) -> Row:
    """Time decode steps `timed` of `num_steps`, guided."""
    options = SamplingOptions(guidance=GUIDANCE, denoising_steps=num_denoising)
    schedule = model.schedule(num_steps, num_masked=model.spec.num_tokens, options=options)
    student = make_student(model, model.network_parameters())
    tasks: dict[str, Task] = {}
    for index in timed:
        for name, task in step_tasks(model, student, schedule[index], batch).items():
            tasks[f"{name} {index}"] = task
    timings = time_in_turn(tasks, model.device, repeats=repeats, warmup=1)

    def total(name: str) -> float:
        return sum(timings[f"{name} {index}"].median_ms for index in timed)

    ours, straightforward, backbone = total("ours"), total("straightforward"), total("backbone")
    student_head, student_backbone = total("student"), total("student backbone")
    student_step = student_head + student_backbone
    return Row(
        batch=batch,
        dtype=str(model.network.fake_latent.dtype).removeprefix("torch."),
        ours_ms=ours,
        straightforward_ms=straightforward,
        backbone_ms=backbone,
        student_ms=student_head,
        student_backbone_ms=student_backbone,
        head_ratio=straightforward / ours,
        step_ratio=(straightforward + backbone) / (ours + backbone),
        student_ratio=(ours + backbone) / student_step,
        student_ratio_straightforward=(straightforward + backbone) / student_step,
    )


def step_tasks(model: MAR, student: Student, step: Step, batch: int) -> dict[str, Task]:
    """The heads on the features of one decode step, and the backbones that make them."""
    condition = model.encode([0] * batch)
    guided = model.with_null(condition)
    order_BL = torch.rand(batch, model.spec.num_tokens, device=model.device).argsort(dim=1)
    blank = model.blank(batch)
    canvas = Canvas(
        torch.randn_like(blank.tokens_BL), order_BL < step.num_masked_before, step.num_masked_before
    )
    positions_BN = canvas.masked_positions()[:, : step.num_decided]
    with torch.inference_mode():
        features_GBLD = model.features(canvas, guided)
    plain = StraightforwardTokens(
        model.network.head, gather_rows(features_GBLD, positions_BN), positions_BN, step.guidance
    )
    seeded = SeededNoise(range(batch), model.spec.num_tokens, model.device)
    return {
        "ours": lambda: model.tokens(features_GBLD, positions_BN, step.guidance).sample(seeded, step),
        "straightforward": lambda: plain.sample(TorchNoise(), step),
        "backbone": lambda: model.features(canvas, guided),
        "student": lambda: student.tokens(features_GBLD[:1], positions_BN, 1.0).sample(seeded, step),
        "student backbone": lambda: student.features(canvas, condition),
    }


def model_of(name: str) -> MAR:
    """Random weights in a released size, or a bundled model or folder."""
    model = (random_pipeline(name) if name in RELEASED else load(name)).model
    if not isinstance(model, MAR):
        raise SystemExit(f"{name} is no MAR")
    return model


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default="mar-b", help=f"{', '.join(RELEASED)}, or a folder")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ar-steps", type=int, default=64, help="decode steps of an image")
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 24, 40, 56], help="those that are timed")
    parser.add_argument("--denoising-steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here as well")
    return parser.parse_args()


def main() -> None:
    chosen = _arguments()
    model, rows = model_of(chosen.model), []
    for dtype in chosen.dtype:
        model.network.to(device=chosen.device, dtype=getattr(torch, dtype))
        for batch in chosen.batch:
            row = measure(
                model,
                batch=batch,
                num_steps=chosen.ar_steps,
                num_denoising=chosen.denoising_steps,
                timed=chosen.steps,
                repeats=chosen.repeats,
            )
            rows.append(row)
            print(
                f"batch {row.batch:3d} {row.dtype:9s} head {row.straightforward_ms:9.1f} -> "
                f"{row.ours_ms:9.1f} ms ({row.head_ratio:.2f}x), with backbone {row.step_ratio:.2f}x; "
                f"student {row.student_ms + row.student_backbone_ms:9.1f} ms ({row.student_ratio:.2f}x ours, "
                f"{row.student_ratio_straightforward:.2f}x the straightforward one)"
            )
    report = {
        "model": chosen.model,
        "steps": [chosen.ar_steps, chosen.steps],
        "denoising_steps": chosen.denoising_steps,
        "guidance": GUIDANCE,
        "repeats": chosen.repeats,
        **measurement(chosen.device),
        "rows": [asdict(row) for row in rows],
    }
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
