"""Meissonic's scheduler: which positions each step decides, from recorded logits, draws and canvases."""

from collections.abc import Mapping

import torch
from torch import Tensor

from swiftmask.core.rng import ReplayNoise
from swiftmask.core.schedule import meissonic_schedule
from swiftmask.core.tokens import CategoricalTokens
from swiftmask.core.types import Canvas, Step
from swiftmask.core.unmask import by_confidence
from verify.cases import Case, Check, compare, exactly


def check(case: Case) -> list[Check]:
    told, given = case.config, case.group("in")
    num_steps, mask_id = told["num_inference_steps"], told["mask_token_id"]
    schedule = meissonic_schedule(
        given["step0.sample"][0].numel(), num_steps, choice_temperature=told["temperature"][0]
    )
    outputs = {
        f"step{step.index}.sample": _after(step, mask_id, case.group(f"in.step{step.index}"))
        for step in schedule
    }
    return [
        exactly("timesteps", [num_steps - 1 - step.index for step in schedule], told["timesteps"]),
        exactly("temperatures", [step.choice_temperature for step in schedule], told["temperatures"]),
        *compare(outputs, case.group("out")),
    ]


def decide(
    step: Step, mask_id: int, canvas_BL: Tensor, logits_BLV: Tensor, sampled_BL: Tensor, uniform_BL: Tensor
) -> Tensor:
    """The canvas [B, L] after a step, given the token drawn and the confidence noise at every position.

    Errors: ValueError if the canvas has not as many masked tokens as the schedule says.
    """
    masked_BL = canvas_BL == mask_id
    counts = set(masked_BL.sum(dim=1).tolist())
    if counts != {step.num_masked_before}:
        raise ValueError(
            f"step {step.index} starts with {sorted(counts)} masked tokens, "
            f"the schedule says {step.num_masked_before}"
        )
    canvas = Canvas(canvas_BL, masked_BL, step.num_masked_before)
    decision = by_confidence(
        lambda positions_BM: _Drawn(logits_BLV, sampled_BL, positions_BM),
        canvas,
        step,
        ReplayNoise([uniform_BL]),
    )
    return canvas.write(decision.positions_BN, decision.tokens_BN).tokens_BL


class _Drawn:
    """Tokens that were drawn elsewhere, and their probabilities."""

    def __init__(self, logits_BLV: Tensor, sampled_BL: Tensor, positions_BM: Tensor) -> None:
        index_BMV = positions_BM[..., None].expand(-1, -1, logits_BLV.shape[-1])
        self._tokens = CategoricalTokens(logits_BLV.gather(1, index_BMV), positions_BM)
        self._sampled_BM = sampled_BL.gather(1, positions_BM)

    def sample(self, noise: object, step: Step) -> tuple[Tensor, Tensor]:
        return self._sampled_BM, self.log_prob(self._sampled_BM, step.temperature)

    def log_prob(self, tokens_BM: Tensor, temperature: float) -> Tensor:
        return self._tokens.log_prob(tokens_BM, temperature)


def _after(step: Step, mask_id: int, recorded: Mapping[str, Tensor]) -> Tensor:
    before_BHW = recorded["sample"]
    batch, *grid = before_BHW.shape
    # The last step decides all that is left: whatever noise the reference drew for it changes nothing.
    uniform_BL = recorded.get("uniform", torch.full((batch, before_BHW[0].numel()), 0.5))
    after_BL = decide(
        step,
        mask_id,
        before_BHW.flatten(1),
        recorded["logits"].flatten(2).transpose(1, 2),
        recorded["sampled"],
        uniform_BL,
    )
    return after_BL.unflatten(1, grid)
