"""The Lumina-DiMOO shortcut equals the reference's numbers, and serves padded batches of prompts."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import FeatureFn, SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.schedule import with_full_steps
from swiftmask.core.types import Record, Trajectory
from swiftmask.methods.shortcut import (
    RotaryShortcut,
    RotaryShortcutConfig,
    Shortcut,
    ShortcutConfig,
    ShortcutFeatures,
    read_shortcut,
    write_shortcut,
)
from swiftmask.methods.shortcut.weights import RELEASED_ROTARY_SHORTCUT, infer_config
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.maskgit import MaskGIT

GOLDEN = Path(__file__).parents[2] / "golden"
SIZES = RotaryShortcutConfig(width=64, bottleneck_width=32, num_heads=4, mlp_width=112)
PROMPTS = ["a red circle on a blue background", "circle"]
NUM_STEPS = 6


@dataclass(frozen=True, slots=True)
class Fresh:
    embedded_XND: Tensor
    places_XN: Tensor
    row_places_XT: Tensor
    padding: tuple[int, ...] = ()
    row_padding: tuple[int, ...] = ()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(GOLDEN / "dimoo_shortcut.safetensors")


@pytest.fixture(scope="module")
def shortcut(tensors: dict[str, Tensor]) -> RotaryShortcut:
    """The golden shortcut of the golden backbone."""
    network = RotaryShortcut(SIZES).eval().requires_grad_(False)
    network.load_state_dict(golden_state(tensors))
    return network


def golden_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}


def recorded(tensors: dict[str, Tensor]) -> Fresh:
    places_1N = tensors["in.new_token_map"][0].nonzero().T
    rows_1T = torch.arange(tensors["in.prev_feature"].shape[1])[None]
    return Fresh(tensors["in.new_token_embedding"], places_1N, rows_1T)


def run(
    model: LuminaDiMOO,
    features_fn: FeatureFn,
    full: list[int],
    *,
    prompts: list[str] = PROMPTS,
    guidance: float = 4.0,
    on_step: list[Record] | None = None,
) -> Trajectory:
    schedule = model.schedule(NUM_STEPS, num_masked=16, options=SamplingOptions(guidance=guidance))
    schedule = with_full_steps(schedule, full)
    noise = SeededNoise([3, 4][: len(prompts)], 16, model.device)
    canvas = model.blank(len(prompts))
    return decode(
        model,
        prepare_condition(model, model.encode(prompts), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=features_fn,
        unmask=model.unmask_rule(canvas, noise),
        on_step=None if on_step is None else on_step.append,
    )


def test_golden(shortcut: RotaryShortcut, tensors: dict[str, Tensor]) -> None:
    ours_1TD = shortcut(tensors["in.prev_feature"], recorded(tensors), tensors["in.mask_ratio"])
    expected_1TD = tensors["out.feature"]
    assert (ours_1TD - expected_1TD).abs().max() <= 1e-5 * expected_1TD.abs().max()


def test_absent_tokens_and_rows_change_nothing(shortcut: RotaryShortcut, tensors: dict[str, Tensor]) -> None:
    """Two tokens that do not count and three rows of padding, beside the recorded ones."""
    fresh, features_1TD = recorded(tensors), tensors["in.prev_feature"]
    row_places_1T = torch.arange(-3, features_1TD.shape[1])[None]
    padded = Fresh(
        torch.cat([torch.randn(1, 2, 64), fresh.embedded_XND], dim=1),
        torch.cat([torch.tensor([[1, 9]]), fresh.places_XN], dim=1),
        row_places_1T,
        (2,),
        (3,),
    )
    wider_1TD = torch.cat([torch.randn(1, 3, 64), features_1TD], dim=1)
    ours_1TD = shortcut(wider_1TD, padded, tensors["in.mask_ratio"])[:, 3:]
    assert (ours_1TD - tensors["out.feature"]).abs().max() <= 1e-5 * tensors["out.feature"].abs().max()


def test_a_row_without_fresh_tokens_stays_finite(
    shortcut: RotaryShortcut, tensors: dict[str, Tensor]
) -> None:
    fresh = recorded(tensors)
    nothing = replace(fresh, padding=(fresh.places_XN.shape[1],))
    assert shortcut(tensors["in.prev_feature"], nothing, tensors["in.mask_ratio"]).isfinite().all()


def test_released_keys_shapes_and_size() -> None:
    manifest = json.loads((GOLDEN / "manifests" / "dimoo_shortcut_blocks1.json").read_text())
    expected = {key: torch.empty(shape, device="meta") for key, shape in manifest["tensors"].items()}
    with torch.device("meta"):
        shortcut = RotaryShortcut(RELEASED_ROTARY_SHORTCUT)
    assert {k: v.shape for k, v in shortcut.state_dict().items()} == {k: v.shape for k, v in expected.items()}
    assert sum(p.numel() for p in shortcut.parameters()) == manifest["parameters"] == 219_797_204
    assert infer_config(expected) == RELEASED_ROTARY_SHORTCUT


def test_files(shortcut: RotaryShortcut, golden_dimoo: LuminaDiMOO, tmp_path: Path) -> None:
    """A bare file needs its heads told; a folder tells them, and which base it is for."""
    torch.save(shortcut.state_dict(), tmp_path / "dimoo-shortcut.pth")
    bare = read_shortcut(tmp_path / "dimoo-shortcut.pth", num_heads=4, base=golden_dimoo.spec)
    write_shortcut(tmp_path / "folder", shortcut, base=golden_dimoo.spec, provenance={})
    folder = read_shortcut(tmp_path / "folder", base=golden_dimoo.spec)
    for again in (bare, folder):
        assert isinstance(again, RotaryShortcut)
        assert again.config == SIZES
        assert all(torch.equal(v, again.state_dict()[k]) for k, v in shortcut.state_dict().items())
    for changes, message in (
        ({"width": 48}, "width 64 against 48"),
        ({"name": "maskgit"}, "family lumina_dimoo"),
    ):
        with pytest.raises(ValueError, match=f"does not fit this model: {message}"):
            read_shortcut(tmp_path / "folder", base=replace(golden_dimoo.spec, **changes))


def test_a_base_without_rotary_positions_is_refused(golden_maskgit: MaskGIT) -> None:
    sizes = replace(SIZES, width=golden_maskgit.spec.width)
    with pytest.raises(
        ValueError, match=r"for a base with rotary positions \(lumina_dimoo\), maskgit has none"
    ):
        ShortcutFeatures(golden_maskgit, RotaryShortcut(sizes))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="width 32 and 5 heads"):
        replace(SIZES, num_heads=5)
    with pytest.raises(ValueError, match="num_blocks must be a whole number between 1 and 1024, got 0"):
        replace(SIZES, num_blocks=0)


def test_all_steps_full_is_vanilla(golden_dimoo: LuminaDiMOO, shortcut: RotaryShortcut) -> None:
    everything = list(range(NUM_STEPS))
    vanilla = run(golden_dimoo, FullFeatures(golden_dimoo), everything)
    ours = run(golden_dimoo, ShortcutFeatures(golden_dimoo, shortcut), everything)
    assert torch.equal(ours.tokens_BL, vanilla.tokens_BL)
    assert torch.equal(ours.decided_at_BL, vanilla.decided_at_BL)


def test_branches_and_images_by_hand(golden_dimoo: LuminaDiMOO, shortcut: RotaryShortcut) -> None:
    """One call per image and branch equals the batched one: the conditional branch reads its prompt and the
    fresh codes, the null branch the codes alone, each at their places in their own sequence.
    """
    records: list[Record] = []
    run(golden_dimoo, ShortcutFeatures(golden_dimoo, shortcut), [0, 3], on_step=records)
    before, record = records[0], records[1]
    condition = golden_dimoo.with_null(golden_dimoo.encode(PROMPTS))
    ratio_1 = torch.tensor([record.step.num_masked_before / 16])
    rows = golden_dimoo.layout.num_image_rows
    for image in range(2):
        for branch in range(2):
            x = branch * 2 + image
            length = condition.lengths[x]
            codes_1N = before.decision.tokens_BN[image : image + 1] + 64
            places_1N = golden_dimoo.layout.columns(
                before.decision.positions_BN[image : image + 1], length + rows
            )
            if branch == 0:
                codes_1N = torch.cat([condition.prompts_XP[x : x + 1, -length:], codes_1N], dim=1)
                places_1N = torch.cat([torch.arange(length)[None], places_1N], dim=1)
            fresh = Fresh(
                golden_dimoo.backbone.embed(codes_1N),
                places_1N,
                torch.arange(length + rows)[None],
            )
            old_1TD = before.features.features_GBTD[branch, image : image + 1, -length - rows :]
            ours_TD = record.features.features_GBTD[branch, image, -length - rows :]
            expected_1TD = shortcut(old_1TD, fresh, ratio_1)
            torch.testing.assert_close(ours_TD, expected_1TD[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_image_does_not_depend_on_its_batch(
    guidance: float, golden_dimoo: LuminaDiMOO, shortcut: RotaryShortcut
) -> None:
    features_fn = ShortcutFeatures(golden_dimoo, shortcut)
    together = run(golden_dimoo, features_fn, [0, 3], guidance=guidance).tokens_BL
    alone = run(golden_dimoo, features_fn, [0, 3], guidance=guidance, prompts=PROMPTS[:1]).tokens_BL
    assert torch.equal(alone[0], together[0])


def test_runs_on_the_meta_device(golden_dimoo: LuminaDiMOO, shortcut: RotaryShortcut) -> None:
    """Reading anything back to the host raises there."""
    features_fn = copy.deepcopy(ShortcutFeatures(golden_dimoo, shortcut)).to("meta")
    assert isinstance(features_fn.model, LuminaDiMOO)
    assert run(features_fn.model, features_fn, [0, 3]).tokens_BL.is_meta


def test_another_shortcut_serves_this_base_too(golden_dimoo: LuminaDiMOO) -> None:
    """The one without rotary positions reads the embeddings of the contract."""
    other = Shortcut(ShortcutConfig(width=64, bottleneck_width=32, num_heads=4)).eval().requires_grad_(False)
    features_fn = ShortcutFeatures(golden_dimoo, other)
    assert (run(golden_dimoo, features_fn, [0, 3]).tokens_BL < 24).all()


def test_it_starts_as_a_copy_and_can_learn(tensors: dict[str, Tensor]) -> None:
    shortcut = RotaryShortcut(SIZES).start_as_copy()
    predicted_1TD = shortcut(tensors["in.prev_feature"], recorded(tensors), tensors["in.mask_ratio"])
    assert torch.equal(predicted_1TD, tensors["in.prev_feature"])
    optimizer = torch.optim.Adam(shortcut.parameters(), lr=1e-2)
    losses = []
    for _ in range(10):
        predicted_1TD = shortcut(tensors["in.prev_feature"], recorded(tensors), tensors["in.mask_ratio"])
        loss = (predicted_1TD - tensors["out.feature"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
