"""Blocks in host memory: the same numbers, and only so much memory on the device."""

import pytest
import torch
from torch import Tensor

from swiftmask.models.lumina_dimoo import LuminaDiMOO, network, offload
from swiftmask.models.lumina_dimoo.network import Backbone, BackboneConfig
from swiftmask.models.lumina_dimoo.offload import arriving, give_memory, visiting

SIZES = BackboneConfig(width=16, depth=5, num_heads=2, mlp_width=24, vocabulary_size=11)
CPU = torch.device("cpu")


@pytest.fixture
def backbone() -> Backbone:
    return Backbone(SIZES).requires_grad_(False)


def run(backbone: Backbone) -> tuple[Tensor, Tensor, Tensor]:
    """Every way a backbone is run."""
    ids_1T = torch.tensor([[1, 5, 9, 2]])
    places_1T, rows_1K = torch.arange(4)[None], torch.tensor([[3, 1]])
    cached_1TD, cache = backbone.forward_with_cache(ids_1T, places_1T)
    again_1KD, _ = backbone.recompute(torch.tensor([[7, 7]]), rows_1K, places_1T, cache)
    return backbone(ids_1T, places_1T), cached_1TD, again_1KD


def test_without_waiting_blocks_nothing_is_copied(backbone: Backbone) -> None:
    assert arriving(backbone.blocks, CPU) == backbone.blocks


@pytest.mark.parametrize("waiting", [[True] * 5, [False, True, False, True, True], [False] * 4 + [True]])
def test_visiting_blocks_give_the_same_numbers(
    waiting: list[bool], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(backbone)
    monkeypatch.setattr(network, "arriving", lambda blocks, device: visiting(blocks, waiting, device))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(run(backbone), expected, strict=True))


def test_visitors_take_turns_in_two_places_and_leave_their_weights_at_home(backbone: Backbone) -> None:
    visited, weights = [], []
    for block in visiting(backbone.blocks, [True] * 5, CPU):
        visited.append(block)
        weights.append(block.attn_out.weight.clone())
    assert [id(block) for block in visited] == [id(visited[i % 2]) for i in range(5)]
    assert not {id(block) for block in visited} & {id(block) for block in backbone.blocks}
    for block, seen in zip(backbone.blocks, weights, strict=True):
        assert torch.equal(block.attn_out.weight, seen)


def test_the_next_block_is_on_its_way_before_this_one_is_used(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    copy = offload._copy
    monkeypatch.setattr(offload, "_copy", lambda block, place: (copied.append(block), copy(block, place)))
    for i, _ in enumerate(visiting(backbone.blocks, [True] * 5, CPU)):
        assert len(copied) == min(i + 2, 5)


def test_memory_is_given_where_it_was_asked_for() -> None:
    with torch.device("meta"):
        backbone = Backbone(SIZES).bfloat16()
    transformer = backbone.model.transformer
    give_memory(
        (transformer.wte, transformer.ln_f, transformer.ff_out), backbone.blocks, torch.device("meta"), 2
    )
    homes = [{p.device.type for p in block.parameters()} for block in backbone.blocks]
    assert homes == [{"meta"}] * 2 + [{"cpu"}] * 3
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert transformer.wte.weight.is_meta
    visit = next(iter(arriving(backbone.blocks[2:], torch.device("meta"))))
    assert {p.device.type for p in visit.parameters()} == {"meta"}


@pytest.mark.gpu
def test_a_decode_with_waiting_blocks_on_a_gpu(golden_dimoo: LuminaDiMOO) -> None:
    device, ids_1T = torch.device("cuda", 0), torch.arange(8)[None].cuda()
    backbone = Backbone(golden_dimoo.backbone.config).requires_grad_(False)
    backbone.load_state_dict(golden_dimoo.backbone.state_dict())
    whole_1TD = backbone.to(device)(ids_1T, ids_1T)
    for block in backbone.blocks[1:]:
        block.to("cpu")
    for _ in range(20):
        assert torch.equal(backbone(ids_1T, ids_1T), whole_1TD)
