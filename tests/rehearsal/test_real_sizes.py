"""A decode of two steps at released sizes in bfloat16, without values: where tensors are, what waits for the
host, and the precision of products. Lumina-DiMOO has two of its blocks.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from fake_gpu import DEVICE, Part, Rehearsal

from swiftmask.cli.random_models import dimoo_around, random_pipeline
from swiftmask.core.decode import FullFeatures
from swiftmask.core.protocol import Condition
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.models.lumina_dimoo.network import Backbone
from swiftmask.models.lumina_dimoo.weights import RELEASED
from swiftmask.pipeline import Pipeline
from tests.rehearsal.watching import short, watched


def released(name: str) -> Pipeline:
    """The pipeline of a released size, on the meta device."""
    with torch.device("meta"):
        if name == "lumina-dimoo":
            return Pipeline(dimoo_around(Backbone(replace(RELEASED, depth=2)).bfloat16()), name=name)
        return random_pipeline(name, device="meta", dtype=torch.bfloat16)


@dataclass(slots=True)
class WatchedBackbone:
    """The feature function of an unaccelerated model, and what happened in each call."""

    pipeline: Pipeline
    gpu: Rehearsal
    parts: list[Part] = field(default_factory=list)
    name: str = "backbone"

    def __call__(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        with self.gpu.part() as part:
            features = FullFeatures(self.pipeline.model)(canvas, condition, step, previous)
        self.parts.append(part)
        return features


@pytest.mark.parametrize("name", ["maskgit-512", "meissonic-1024", "mar-b", "lumina-dimoo"])
def test_backbones_compute_in_bfloat16_on_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = released(name)
    with Rehearsal(values=False) as gpu:
        pipeline.model.to_empty(device=DEVICE)  # type: ignore[attr-defined]
        backbone = WatchedBackbone(pipeline, gpu)
        pipeline = short(replace(pipeline, features_fn=backbone))
        draws_classes = pipeline.model.spec.draws == "class"
        what: dict[str, Any] = {"labels": [1, 2]} if draws_classes else {"prompts": ["image"] * 2}
        with watched(gpu, monkeypatch) as decode:
            result = pipeline.generate(**what, steps=2, output_type="pt")
        assert isinstance(result.images, torch.Tensor)
        assert result.trajectory.tokens_BL.device == result.images.device == DEVICE
        assert decode.waits == []
        products = [product for part in backbone.parts for product in part.products]
        assert len(backbone.parts) == 2
        assert {operation for operation, *_ in products} & {"scaled_dot_product_attention"}
        assert [product for product in products if product[1] != torch.bfloat16] == []
