"""Operations that are remembered count as those that PyTorch's own counter runs one by one."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swiftmask.api import accelerate
from swiftmask.core.operations import CountedOperations
from swiftmask.core.protocol import SamplingOptions
from swiftmask.pipeline import Pipeline


class OneByOne(FlopCounterMode):
    def __init__(self) -> None:
        super().__init__(display=False)

    @property
    def total(self) -> int:
        return self.get_total_flops()


@pytest.mark.parametrize(
    ("family", "guidance"), [("maskgit", 1.0), ("mar", 3.0), ("meissonic", 3.0), ("dimoo", 3.0)]
)
def test_a_decode_counts_as_in_pytorch(
    family: str, guidance: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = request.getfixturevalue(f"golden_{family}")
    plain = Pipeline(model, sampling=SamplingOptions(guidance=guidance))
    fast = accelerate(plain, caching="ml-cache" if family == "dimoo" else "reuse", full_steps=2)
    counted = [pipeline.step_flops(pipeline.schedule(3)) for pipeline in (plain, fast)]
    again = [pipeline.step_flops(pipeline.schedule(3)) for pipeline in (plain, fast)]
    monkeypatch.setattr("swiftmask.pipeline.CountedOperations", OneByOne)
    expected = [pipeline.step_flops(pipeline.schedule(3)) for pipeline in (plain, fast)]
    assert counted == again == expected
    assert sum(expected[0]) > sum(expected[1]) > 0


def test_results_that_are_made_again_look_like_the_first() -> None:
    """... whatever their strides, and another shape, stride, dtype or number is another operation."""
    wide: Any = torch.empty(4, 6, device="meta")
    calls = [
        lambda: wide.t() @ wide,
        lambda: wide[:, ::2] @ wide.t()[::2],
        lambda: wide.double() @ wide.double().t(),
        lambda: torch.cat([wide, wide.t().contiguous().view(4, 6)], dim=1).split(5, dim=1),
        lambda: torch.cat([wide, wide], dim=0).split(3, dim=0),
        lambda: wide.topk(2, dim=1),
        lambda: wide.topk(3, dim=1),
    ]
    expected = [call() for call in calls]
    with FlopCounterMode(display=False) as own:
        _ = [call() for call in calls]
    for _ in range(2):
        with CountedOperations() as counter:
            made = [call() for call in calls]
        assert counter.total == own.get_total_flops() > 0
        for one, other in zip(made, expected, strict=True):
            ours, theirs = ([x] if isinstance(x, torch.Tensor) else list(x) for x in (one, other))
            assert [(x.shape, x.stride(), x.dtype) for x in ours] == [
                (x.shape, x.stride(), x.dtype) for x in theirs
            ]


def test_what_reads_a_value_still_raises() -> None:
    empty = torch.empty(3, device="meta")
    for _ in range(2), range(2):
        with CountedOperations(), pytest.raises(RuntimeError):
            empty.sum().item()


def test_values_of_the_host_are_computed() -> None:
    with CountedOperations():
        assert [float(torch.tensor([2.0]) * number) for number in (3.0, 4.0)] == [6.0, 8.0]
