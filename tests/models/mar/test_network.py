"""The backbone: which tokens enter, the reference's numbers, and its precisions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from swiftmask.core.types import Canvas
from swiftmask.models.mar import MAR
from swiftmask.models.mar.network import KnownTokens, Network, NetworkConfig

B, L, C = 2, 16, 4


@torch.no_grad()
def known_of(num_known: int, batch: int = B) -> KnownTokens:
    order_BL = torch.rand(batch, L).argsort(dim=1)
    return KnownTokens.at(torch.randn(batch, L, C), order_BL[:, :num_known])


@torch.no_grad()
def test_golden(golden_mar: MAR) -> None:
    tensors = load_file(Path(__file__).parents[2] / "golden" / "mar.safetensors")
    network, masked_BL = golden_mar.network, tensors["in.mask"].bool()
    num_known = int((~masked_BL[0]).sum())
    known = KnownTokens.of(Canvas(tensors["in.tokens"], masked_BL, L - num_known))
    classes_BD = network.class_vectors(tensors["in.labels"])
    null_BD = network.null_vectors(len(classes_BD))
    both_XLD = network(known, torch.cat([classes_BD, null_BD]))
    outputs = {"encoder": network.encode(known, classes_BD)}
    outputs |= dict(zip(("z", "z_unconditional"), both_XLD.chunk(2), strict=True))
    for name, ours in outputs.items():
        theirs = tensors[f"out.{name}"]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), name


@torch.no_grad()
def test_masked_tokens_never_enter(network: Network) -> None:
    masked_BL = torch.rand(B, L).argsort(dim=1) < 11
    tokens_BLC = torch.randn(B, L, C)
    other_BLC = torch.where(masked_BL[..., None], torch.full_like(tokens_BLC, torch.nan), tokens_BLC)
    classes_BD = network.class_vectors(torch.tensor([0, 3]))
    first, second = (
        network(KnownTokens.of(Canvas(t, masked_BL, 11)), classes_BD) for t in (tokens_BLC, other_BLC)
    )
    assert torch.equal(first, second)


@torch.no_grad()
def test_the_order_of_known_tokens_does_not_matter(network: Network) -> None:
    known = known_of(6)
    turned = KnownTokens(known.tokens_BNC.flip(1), known.positions_BN.flip(1))
    classes_BD = network.class_vectors(torch.tensor([0, 3]))
    torch.testing.assert_close(network(known, classes_BD), network(turned, classes_BD), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_that_fill_up_change_nothing(network: Network) -> None:
    """Images with 6, 2 and no known tokens together, and each alone."""
    tokens_BLC, counts = torch.randn(3, L, C), [6, 2, 0]
    positions_BN = torch.rand(3, L).argsort(dim=1)[:, :6]
    present_BN = torch.arange(6) < torch.tensor(counts)[:, None]
    classes_BD = network.class_vectors(torch.tensor([0, 3, 4]))
    together = network(KnownTokens.at(tokens_BLC, positions_BN, present_BN), classes_BD)
    for image, count in enumerate(counts):
        one = slice(image, image + 1)
        alone = network(KnownTokens.at(tokens_BLC[one], positions_BN[one, :count]), classes_BD[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_places_matter_and_every_place_has_its_own_condition(network: Network) -> None:
    tokens_BLC, classes_BD = torch.randn(1, L, C), network.class_vectors(torch.tensor([1]))
    z_LD = network(KnownTokens.at(tokens_BLC, torch.tensor([[2, 7]])), classes_BD)[0]
    moved = KnownTokens(tokens_BLC[:, [2, 7]], torch.tensor([[3, 7]]))
    assert not torch.allclose(z_LD, network(moved, classes_BD)[0])
    assert torch.cdist(z_LD, z_LD).add(torch.eye(L)).min() > 1e-3
    assert z_LD.shape == (L, network.config.decoder_width)


@torch.no_grad()
def test_bfloat16_stays_close(network: Network) -> None:
    known, labels_B = known_of(6), torch.tensor([0, 3])
    high = network(known, network.class_vectors(labels_B))
    network.bfloat16()
    low = network(known, network.class_vectors(labels_B))
    assert low.dtype == torch.bfloat16
    assert (low - high).abs().max() < 0.05 * high.abs().max()


def test_dropout_acts_only_in_training(sizes: NetworkConfig) -> None:
    network, known = Network(replace(sizes, dropout=0.3)), known_of(6)
    classes_BD = network.class_vectors(torch.tensor([0, 3]))
    assert not torch.equal(network(known, classes_BD), network(known, classes_BD))
    network.eval()
    trained = network(known, classes_BD)
    with torch.no_grad():  # the path that computes in place
        torch.testing.assert_close(network(known, network.class_vectors(torch.tensor([0, 3]))), trained)


def test_training_computes_the_same_without_dropout(sizes: NetworkConfig) -> None:
    """On a CPU it takes another way through attention, with and without rows that fill up."""
    network, known = Network(replace(sizes, dropout=0.0)), known_of(6)
    present_BN = torch.arange(6) < torch.tensor([6, 3])[:, None]
    classes_BD = network.class_vectors(torch.tensor([0, 3]))
    for rows in (known, replace(known, present_BN=present_BN)):
        trained = network.train()(rows, classes_BD)
        torch.testing.assert_close(network.eval()(rows, classes_BD), trained, rtol=1e-4, atol=1e-5)


def test_initialisation_starts_the_head_from_silence(sizes: NetworkConfig) -> None:
    network = Network(sizes)
    noisy_XC, timesteps_X = torch.randn(3, C), torch.tensor([0, 500, 999])
    assert (network.head(noisy_XC, timesteps_X, torch.randn(3, sizes.decoder_width)) == 0).all()
    for parameter in (network.mask_token, network.class_emb.weight, network.encoder_pos_embed_learned):
        assert parameter.std().item() == pytest.approx(0.02, rel=0.5)
    assert (network.encoder_blocks[0].attn.qkv.bias == 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_heads": 5}, "decoder_width must be a multiple of its heads, got 48 and 5 heads"),
        ({"patch_size": 3}, "multiple of patch_size squared, got 4 and patch_size 3"),
    ],
)
def test_impossible_sizes(sizes: NetworkConfig, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(sizes, **changes)
