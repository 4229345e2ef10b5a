"""A step at released sizes in bfloat16, without values: where tensors are, and the precision of products."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from swiftmask.cli.random_models import dimoo_around, random_pipeline
from swiftmask.core.rng import SeededNoise
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.weights import RELEASED
from tests.rehearsal.gpu import DEVICE, Rehearsal


def released(name: str) -> Any:
    """The model of a released size, Lumina-DiMOO with two of its blocks."""
    if name == "lumina-dimoo":
        return dimoo_around(Backbone(replace(RELEASED, depth=2)).bfloat16())
    return random_pipeline(name, device="meta", dtype=torch.bfloat16).model


@pytest.mark.parametrize("name", ["maskgit-512", "meissonic-1024", "mar-b", "lumina-dimoo"])
def test_backbones_compute_in_bfloat16_on_the_device(name: str) -> None:
    with Rehearsal(values=False) as gpu, torch.no_grad():
        with torch.device("meta"):
            model = released(name)
        model.to_empty(device=DEVICE)
        what = [1, 2] if model.spec.draws == "class" else ["image", "image"]
        options = replace(model.sampling, guidance=2.0)
        canvas = model.blank(2)
        step = model.schedule(2, num_masked=model.spec.num_tokens, options=options)[0]
        condition = model.with_null(model.encode(what))
        rule = model.unmask_rule(canvas, SeededNoise([0, 1], model.spec.num_tokens, DEVICE))
        with gpu.part() as backbone:
            features_GBTD = model.features(canvas, condition)
        noise = SeededNoise([0, 1], model.spec.num_tokens, DEVICE)
        with gpu.part() as head:
            decision = rule(
                lambda rows_BM: model.tokens(features_GBTD, rows_BM, step.guidance), canvas, step, noise
            )
        assert canvas.write(decision.positions_BN, decision.tokens_BN).tokens_BL.device == DEVICE
        assert features_GBTD.dtype == torch.bfloat16
        assert {dtype for _, dtype, _ in backbone.products} == {torch.bfloat16}, backbone.products
        assert [str(event) for event in (*backbone.events, *head.events)] == []
