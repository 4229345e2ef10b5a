"""Classes that are the sum of their attributes: a concept in a style that no image shows can be asked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from swiftmask.api import load
from swiftmask.core.trainable import Subject
from swiftmask.core.vq_codec import VQConfig, build_vq_codec
from swiftmask.models.mar.codec import KLCodec, KLConfig
from swiftmask.models.mar.training import with_classes as mar_with_classes
from swiftmask.models.maskgit.training import with_classes as maskgit_with_classes
from swiftmask.registry import trainable

CONCEPTS, STYLES = 3, 2
ATTRIBUTES_NA = torch.tensor([[concept, style] for concept in range(CONCEPTS) for style in range(STYLES)])


def untrained(family: str) -> tuple[torch.nn.Module, object]:
    """A tiny model with six composed classes on 4x4 tokens, and its task."""
    torch.manual_seed(0)
    if family == "mar":
        sizes = KLConfig(
            ch=8,
            ch_mult=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(),
            resolution=16,
            z_channels=2,
            num_groups=8,
        )
        codec: object = KLCodec(sizes)
    else:
        codec = build_vq_codec(
            VQConfig(
                block_out_channels=(4, 4),
                layers_per_block=1,
                latent_channels=4,
                num_vq_embeddings=8,
                norm_num_groups=2,
            )
        )
    names = tuple(f"{concept}, {style}" for concept, style in ATTRIBUTES_NA.tolist())
    subject = Subject(
        codec=codec,
        resolution=16 if family == "mar" else 8,
        class_names=names,
        attributes_NA=ATTRIBUTES_NA,
    )
    own = trainable(family)
    changes = own.chosen("tiny", type(own.unset)(composed_classes=True))
    task = own.fresh(changes, subject, own.objective)
    return task.model(task.trainer, own.sampling, 2), task


def vectors(family: str, network: torch.nn.Module, number: int) -> torch.Tensor:
    labels_N = torch.arange(number)
    if family == "mar":
        return network.class_vectors(labels_N)  # type: ignore[operator]
    return network.class_vectors((network.config.first_class_id + labels_N)[None])[0]  # type: ignore


def network_of(family: str, model: torch.nn.Module) -> torch.nn.Module:
    return model.network if family == "mar" else model.transformer  # type: ignore[return-value]


@pytest.mark.parametrize("family", ["maskgit", "mar"])
def test_a_class_is_the_sum_of_its_attributes(family: str, tmp_path: Path) -> None:
    """Changing the style changes every concept's vector by the same, also after half precision on disk."""
    model, _ = untrained(family)
    model.save_pretrained(tmp_path, provenance={}, dtype=torch.float16)  # type: ignore[operator]
    again = load(tmp_path, device="cpu").model
    for each in (model, again):
        network = network_of(family, each)  # type: ignore[arg-type]
        table_CSD = vectors(family, network, 6).unflatten(0, (CONCEPTS, STYLES))
        steps_CD = table_CSD[:, 1] - table_CSD[:, 0]
        torch.testing.assert_close(steps_CD, steps_CD[:1].expand_as(steps_CD))
        assert len(table_CSD.flatten(0, 1).unique(dim=0)) == 6
        assert network.class_rows.tolist() == [[c, CONCEPTS + s] for c, s in ATTRIBUTES_NA.tolist()]
    images = load(tmp_path, device="cpu").generate(["2, 1"], seeds=[0], output_type="pt").images
    assert torch.isfinite(images).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["maskgit", "mar"])
def test_gradients_of_one_pair_move_the_others_that_share_its_attributes(family: str) -> None:
    network = network_of(family, untrained(family)[0])
    before_ND = vectors(family, network, 6).detach().clone()
    loss = vectors(family, network, 6)[0].sum()  # concept 0 in style 0
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
    moved_N = (vectors(family, network, 6) - before_ND).abs().amax(1) > 0
    assert moved_N.tolist() == [True, True, True, False, True, False]


@pytest.mark.parametrize(
    ("family", "replaced"), [("maskgit", maskgit_with_classes), ("mar", mar_with_classes)]
)
def test_other_classes_are_composed_too(family: str, replaced: object) -> None:
    network = network_of(family, untrained(family)[0])
    others_NA = torch.tensor([[0, 0, 1], [1, 1, 0], [1, 2, 1], [0, 1, 0]])
    changed = replaced(network, others_NA)  # type: ignore[operator]
    assert changed.config.num_classes == 4
    assert changed.config.class_attributes == (2, 3, 2)
    own_ND, others_ND = vectors(family, network, 6), vectors(family, changed, 4)
    assert 0.3 < (others_ND - own_ND.mean(0)).std() / (own_ND - own_ND.mean(0)).std() < 3


def test_the_null_class_is_no_class_of_the_table() -> None:
    model, _ = untrained("maskgit")
    network = network_of("maskgit", model)
    null_1 = torch.tensor([[network.config.null_id]])
    torch.testing.assert_close(network.class_vectors(null_1)[0, 0], network.tok_emb.weight[-1])
    assert network.bias.shape == (17, 8)
    assert len(network.tok_emb.weight) == 8 + 1 + CONCEPTS + STYLES + 1


@pytest.mark.parametrize(
    ("family", "key"), [("maskgit", "transformer.class_rows"), ("mar", "network.class_rows")]
)
def test_rows_that_no_table_has_are_refused(family: str, key: str, tmp_path: Path) -> None:
    model, _ = untrained(family)
    model.save_pretrained(tmp_path, provenance={})  # type: ignore[operator]
    state = load_file(tmp_path / "model.safetensors")
    for wrong in (state[key] + 3, state[key] - 1, state[key].float()):
        save_file(state | {key: wrong}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="class_rows do not fit class_attributes"):
            load(tmp_path, device="cpu")
