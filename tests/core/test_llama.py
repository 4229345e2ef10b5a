"""The Llama block trains with plain attention on a CPU and infers with the fused one: the same numbers."""

import pytest
import torch

from swiftmask.core.llama import LlamaBlock, Rotary


@pytest.mark.parametrize("padded", [False, True])
def test_attention_in_training_equals_attention_in_inference(padded: bool) -> None:
    block, x_XTD = LlamaBlock(16, 2, 24), torch.randn(2, 5, 16)
    places_XT = torch.arange(5) - torch.tensor([[0], [2]])
    padding_X = torch.tensor([0, 2]) if padded else None
    rotary = Rotary.at(places_XT, 8, 1e4)
    trained_XTD = block(x_XTD, rotary, padding_X)
    assert trained_XTD.requires_grad
    with torch.no_grad():
        inferred_XTD = block(x_XTD, rotary, padding_X)
    counts_XT = places_XT >= 0
    torch.testing.assert_close(trained_XTD[counts_XT], inferred_XTD[counts_XT])


def test_a_compiled_block_trains_on_padded_rows_as_an_eager_one() -> None:
    block, x_XTD = LlamaBlock(16, 2, 24), torch.randn(3, 5, 16)
    padding_X = torch.tensor([0, 2, 2])
    rotary = Rotary.at(torch.arange(5) - padding_X[:, None], 8, 1e4)
    counts_XT = torch.arange(5) >= padding_X[:, None]
    gradients = []
    for forward in (block, torch.compile(block, backend="eager", dynamic=True, fullgraph=True)):
        block.zero_grad(set_to_none=True)
        forward(x_XTD, rotary, padding_X)[counts_XT].square().sum().backward()
        gradients.append([parameter.grad for parameter in block.parameters()])
    for eager, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, eager)


def test_a_query_without_any_key_stays_finite_in_training() -> None:
    block, x_XTD = LlamaBlock(16, 2, 24), torch.randn(1, 3, 16)
    rotary = Rotary.at(torch.arange(3)[None], 8, 1e4)
    block(x_XTD, rotary, torch.tensor([3])).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_runs_in_place_has_the_same_bits_and_leaves_its_input_alone(dtype: torch.dtype) -> None:
    block, x_XTD = LlamaBlock(16, 2, 24).to(dtype), torch.randn(2, 5, 16).to(dtype)
    rotary = Rotary.at(torch.arange(5).expand(2, 5), 8, 1e4)
    before = x_XTD.clone()
    trained = block.project(x_XTD, rotary)
    with torch.no_grad():
        inferred = block.project(x_XTD, rotary)
        finished = block.finish(x_XTD, *inferred)
    assert all(torch.equal(one, other) for one, other in zip(trained, inferred, strict=True))
    assert finished.dtype == dtype
    assert torch.equal(x_XTD, before)
    q_XNTH = torch.randn(2, 3, 5, 8).to(dtype)
    pairs = torch.view_as_complex(torch.stack(q_XNTH.double().chunk(2, dim=-1), dim=-1))
    angle_XTh = torch.atan2(rotary.sin_XTH, rotary.cos_XTH)[:, None, :, :4].double()
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angle_XTh), angle_XTh))
    torch.testing.assert_close(rotary.turn(q_XNTH), torch.cat(turned.unbind(-1), dim=-1).to(dtype))
