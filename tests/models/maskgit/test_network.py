"""The transformer equals the reference's numbers, in the precisions it runs in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from swiftmask.models.maskgit.network import Transformer, TransformerConfig

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="module")
def golden() -> tuple[Transformer, dict[str, Tensor]]:
    config = json.loads((GOLDEN / "maskgit_transformer.json").read_text())["config"]
    tensors = load_file(GOLDEN / "maskgit_transformer.safetensors")
    sizes = TransformerConfig(
        width=config["hidden_dim"],
        depth=config["depth"],
        num_heads=config["heads"],
        mlp_width=config["mlp_dim"],
        codebook_size=config["codebook_size"],
        num_classes=config["nclass"],
        grid=config["grid"],
    )
    network = Transformer(sizes).eval()
    network.load_state_dict(
        {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    )
    return network, tensors


def _ids(network: Transformer, tensors: dict[str, Tensor]) -> Tensor:
    class_B = network.config.first_class_id + tensors["in.labels"]
    class_B = torch.where(tensors["in.drop_label"], network.config.null_id, class_B)
    return torch.cat([tensors["in.tokens"].flatten(1), class_B[:, None]], dim=1)


@torch.no_grad()
def test_golden(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    network, tensors = golden
    features_BTD = network(_ids(network, tensors))
    logits_BLK = network.logits(features_BTD[:, :-1])
    for ours, theirs in ((features_BTD, tensors["out.feature"]), (logits_BLK, tensors["out.logits"])):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@torch.no_grad()
def test_logits_at_chosen_positions(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    network, tensors = golden
    positions_BM = torch.tensor([[1, 5, 9], [0, 2, 3], [15, 3, 7]])
    features_BMD = torch.stack(
        [feature_TD[row] for feature_TD, row in zip(tensors["out.feature"], positions_BM, strict=True)]
    )
    expected_BMK = torch.stack(
        [logits_LK[row] for logits_LK, row in zip(tensors["out.logits"], positions_BM, strict=True)]
    )
    torch.testing.assert_close(network.logits(features_BMD, positions_BM), expected_BMK)


@torch.no_grad()
def test_embedding_at_chosen_positions(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    network, tensors = golden
    ids_BT = _ids(network, tensors)
    positions_BT = torch.tensor([[2, 11]]).expand(len(ids_BT), 2)
    torch.testing.assert_close(
        network.embed(ids_BT[:, [2, 11]], positions_BT), network.embed(ids_BT)[:, [2, 11]]
    )


@torch.no_grad()
def test_bfloat16_stays_close(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    network, tensors = golden
    low = Transformer(network.config).eval()
    low.load_state_dict(network.state_dict())
    features_BTD = low.bfloat16()(_ids(network, tensors))
    logits_BLK = low.logits(features_BTD[:, :-1])
    assert features_BTD.dtype == torch.bfloat16
    assert logits_BLK.dtype == torch.float32
    assert (logits_BLK - tensors["out.logits"]).abs().max() <= 0.05 * tensors["out.logits"].abs().max()


@torch.no_grad()
def test_edge_norm_survives_bfloat16() -> None:
    """eps 1e-12 vanishes beside bfloat16 statistics, so a constant row must not divide by zero."""
    config = TransformerConfig(
        width=16, depth=1, num_heads=2, mlp_width=32, codebook_size=8, num_classes=2, grid=2
    )
    network = Transformer(config).eval().bfloat16()
    network.tok_emb.weight.fill_(3.0)
    network.pos_emb.fill_(0.25)
    assert network(torch.zeros(1, 5, dtype=torch.int64)).isfinite().all()


def test_trains_under_autocast_with_dropout(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    torch.manual_seed(0)
    network = Transformer(replace(golden[0].config, dropout=0.1))
    ids_BT = _ids(network, golden[1])
    target_BL = ids_BT[:, :-1].clamp(max=network.config.codebook_size - 1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLK = network.logits(network(ids_BT)[:, :-1])
        loss = F.cross_entropy(logits_BLK.flatten(0, 1), target_BL.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert losses[-1] < 0.9 * losses[0]


def test_dropout_acts_only_in_training(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    network = Transformer(replace(golden[0].config, dropout=0.5))
    ids_BT = _ids(network, golden[1])
    assert not torch.equal(network(ids_BT), network(ids_BT))
    assert torch.equal(network.eval()(ids_BT), network(ids_BT))


def test_ids_of_the_vocabulary(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    released = replace(golden[0].config, codebook_size=1024, num_classes=1000, grid=32)
    assert (released.mask_id, released.first_class_id, released.null_id) == (1024, 1025, 2025)
    assert (released.vocabulary_size, released.sequence_length) == (2026, 1025)


def test_wrong_length_and_heads_are_refused(golden: tuple[Transformer, dict[str, Tensor]]) -> None:
    network, _ = golden
    with pytest.raises(ValueError, match="expected 17 ids a row"):
        network(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="multiple of num_heads"):
        replace(network.config, num_heads=5)
