"""Lumina-DiMOO in the decode loop: batches, guidance, sizes, start canvases and samplers."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from swiftmask.core.decode import FullFeatures, prepare_condition
from swiftmask.core.decode import decode as run
from swiftmask.core.protocol import SamplingOptions
from swiftmask.core.rng import SeededNoise
from swiftmask.core.types import Canvas
from swiftmask.core.vq_codec import VQCodec
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.lumina_dimoo.layout import Vocabulary
from swiftmask.pipeline import Pipeline

PROMPTS = ["a red circle on a blue background", "circle", "a red circle"]


def decode(model: LuminaDiMOO, prompts: list[str], seeds: list[int], guidance: float = 5.0) -> Tensor:
    schedule = model.schedule(6, num_masked=16, options=SamplingOptions(guidance=guidance))
    noise, canvas = SeededNoise(seeds, 16), model.blank(len(prompts))
    return run(
        model,
        prepare_condition(model, model.encode(prompts), schedule),
        schedule,
        noise,
        canvas=canvas,
        features_fn=FullFeatures(model),
        unmask=model.unmask_rule(canvas, noise),
    ).tokens_BL


def half_decided(model: LuminaDiMOO, batch: int) -> Canvas:
    positions_BN = torch.arange(0, model.spec.num_tokens, 2).expand(batch, -1)
    return model.blank(batch).write(positions_BN, positions_BN % 5)


def test_a_padded_batch_equals_single_runs(golden_dimoo: LuminaDiMOO) -> None:
    canvas = half_decided(golden_dimoo, 3)
    together = golden_dimoo.with_null(golden_dimoo.encode(PROMPTS))
    assert len(set(together.lengths)) == 3
    together_GBTD = golden_dimoo.features(canvas, together)
    size = golden_dimoo.layout.num_image_rows
    for i, prompt in enumerate(PROMPTS):
        for branch, condition in enumerate(_alone(golden_dimoo, prompt)):
            alone_11TD = golden_dimoo.features(half_decided(golden_dimoo, 1), condition)
            ours_RD, theirs_RD = together_GBTD[branch, i, -size:], alone_11TD[0, 0, -size:]
            assert (ours_RD - theirs_RD).abs().max() <= 1e-5 * theirs_RD.abs().max()


def _alone(model: LuminaDiMOO, prompt: str) -> list:
    """The conditional branch and the null branch, each without padding."""
    condition = model.encode([prompt])
    null = type(condition).of([condition.null_ids], condition.null_ids, "cpu")
    assert condition.padding == null.padding == (0,)
    return [condition, null]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_a_image_does_not_depend_on_its_batch(guidance: float, golden_dimoo: LuminaDiMOO) -> None:
    whole = decode(golden_dimoo, PROMPTS, [5, 6, 7], guidance)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(decode(golden_dimoo, [prompt], [5 + i], guidance)[0], whole[i])
    assert len({tuple(row) for row in whole.tolist()}) == 3


def test_values_under_the_mask_mean_nothing(golden_dimoo: LuminaDiMOO) -> None:
    canvas, condition = half_decided(golden_dimoo, 1), golden_dimoo.encode(["circle"])
    other = Canvas(canvas.tokens_BL.masked_fill(canvas.masked_BL, 3), canvas.masked_BL, canvas.num_masked)
    assert torch.equal(golden_dimoo.features(canvas, condition), golden_dimoo.features(other, condition))


def test_logits_cover_codes_only_and_guidance_is_linear(golden_dimoo: LuminaDiMOO) -> None:
    canvas = half_decided(golden_dimoo, 1)
    features_GBTD = golden_dimoo.features(canvas, golden_dimoo.with_null(golden_dimoo.encode(["circle"])))
    positions_BM = canvas.masked_positions()
    logits = [
        golden_dimoo.tokens(features, positions_BM, guidance).logits_BMV  # type: ignore[attr-defined]
        for features, guidance in ((features_GBTD[:1], 1.0), (features_GBTD[1:], 1.0), (features_GBTD, 4.0))
    ]
    assert logits[2].shape == (1, 8, 24)
    torch.testing.assert_close(logits[2], 4 * logits[0] - 3 * logits[1], rtol=1e-4, atol=1e-4)


def test_inpainting_keeps_what_is_known(golden_dimoo: LuminaDiMOO) -> None:
    canvas = half_decided(golden_dimoo, 2)
    result = Pipeline(golden_dimoo).generate(prompts=PROMPTS[:2], steps=3, canvas=canvas, output_type="pt")
    known_BL = ~canvas.masked_BL
    assert torch.equal(result.trajectory.tokens_BL[known_BL], canvas.tokens_BL[known_BL])
    assert (result.trajectory.tokens_BL < 24).all()


def test_other_sizes_share_the_weights(golden_dimoo: LuminaDiMOO) -> None:
    wide = golden_dimoo.sized(4, 12)  # two pixels a code
    assert (wide.spec.grid, wide.backbone) == ((2, 6), golden_dimoo.backbone)
    result = Pipeline(wide).generate(prompts=["circle"], steps=3, output_type="pt")
    assert isinstance(result.images, Tensor)
    assert result.images.shape == (1, 3, 4, 12)
    with pytest.raises(ValueError, match="multiples of 2, got 5x8"):
        golden_dimoo.sized(5, 8)


def test_images_to_codes_and_their_size(golden_dimoo: LuminaDiMOO) -> None:
    codes_BL = golden_dimoo.to_tokens(torch.rand(2, 3, 8, 8))
    assert codes_BL.shape == (2, 16)
    assert codes_BL.max() < 24
    with pytest.raises(ValueError, match=r"expected images of 8x8 .*got 8x16: resize them"):
        golden_dimoo.to_tokens(torch.rand(1, 3, 8, 16))


def test_codec_and_vocabulary_must_fit(golden_dimoo: LuminaDiMOO) -> None:
    parts = (golden_dimoo.backbone, golden_dimoo.codec, golden_dimoo.prompts)
    with pytest.raises(ValueError, match="need a vocabulary of 134548, the backbone knows 96"):
        LuminaDiMOO(*parts, vocabulary=Vocabulary(), grid=(4, 4))
    codec = VQCodec(replace(parts[1].config, num_vq_embeddings=9), parts[1].vq)
    with pytest.raises(ValueError, match="24 image codes, the codec 9"):
        LuminaDiMOO(parts[0], codec, parts[2], vocabulary=golden_dimoo.layout.vocabulary, grid=(4, 4))
    with pytest.raises(ValueError, match="sampler must be exact or bf16_compat, got 'fast'"):
        golden_dimoo.with_sampler("fast")  # type: ignore[arg-type]


def test_the_compatible_sampler_draws_other_tokens_from_the_same_seeds(golden_dimoo: LuminaDiMOO) -> None:
    model = golden_dimoo.with_sampler("bf16_compat")
    whole = decode(model, PROMPTS, [5, 6, 7])
    assert torch.equal(decode(model, PROMPTS[1:], [6, 7]), whole[1:])
    assert not torch.equal(whole, decode(golden_dimoo, PROMPTS, [5, 6, 7]))
