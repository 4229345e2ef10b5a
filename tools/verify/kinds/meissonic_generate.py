"""A whole Meissonic decode with guidance, token for token from the recorded draws and embedded prompts.

The weights are those of a sibling case in the same folder, named under `base`. The text encoder and the codec
are never run, so their libraries need not be installed.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from swiftmask.core.decode import FullFeatures, decode, prepare_condition
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.rng import ReplayNoise
from swiftmask.core.schedule import meissonic_schedule
from swiftmask.core.unmask import by_confidence
from swiftmask.core.vq_codec import VQCodec, VQConfig
from swiftmask.models.meissonic import Meissonic, Prompt
from swiftmask.models.meissonic.network import Transformer
from swiftmask.models.meissonic.text import TextConfig, TextEmbedding, TextEncoder, Tokenizer
from verify.cases import Case, Check, compare, read_case, sibling_names
from verify.kinds import meissonic_transformer


def check(case: Case) -> list[Check]:
    told, given = case.config, case.group("in")
    size, grid = (told["height"], told["width"]), tuple(told["token_grid"])
    model = _model(_transformer(case), size, grid)
    schedule = meissonic_schedule(
        model.spec.num_tokens,
        told["num_inference_steps"],
        guidance=told["guidance_scale"],
        choice_temperature=told["temperature"][0],
    )
    prompt = Prompt(
        "embedded already",
        crop=tuple(told["crop"]),
        aesthetic_score=told["micro_conditioning_aesthetic_score"],
    )
    batch = len(given["prompt_embeds"])
    condition = model.condition(
        TextEmbedding(given["encoder_hidden_states"], given["prompt_embeds"]),
        TextEmbedding(given["negative_encoder_hidden_states"], given["negative_prompt_embeds"]),
        torch.tensor([prompt.micro(size)] * batch),
    ).along(schedule)
    contract = cast(MaskedGenerator, model)
    trajectory = decode(
        contract,
        prepare_condition(contract, condition, schedule),
        schedule,
        ReplayNoise(_draws(case, batch)),
        canvas=model.blank(batch),
        features_fn=FullFeatures(contract),
        unmask=by_confidence,
    )
    return compare({"ids": trajectory.tokens_BL.unflatten(1, grid)}, case.group("out"))


def _draws(case: Case, batch: int) -> list[Tensor]:
    """Token and confidence noise in call order. The reference draws no confidence noise at the last step,
    which decides all that is left; any will do there.
    """
    recorded = case.group("in.uniform")
    draws = [recorded[key] for key in sorted(recorded)]
    shaped = [
        draw.unflatten(0, (batch, -1)) if key.endswith(".token") else draw
        for key, draw in zip(sorted(recorded), draws, strict=True)
    ]
    return [*shaped, torch.full(shaped[-1].shape[:2], 0.5)]


def _transformer(case: Case) -> Transformer:
    names = sibling_names(case, "meissonic_transformer")
    found = next((name for name in names if (case.folder / f"{name}.json").exists()), None)
    if found is None:
        raise FileNotFoundError(f"{case.name} needs the weights of {names[0]}: {names[0]}.json is missing")
    return meissonic_transformer.build(read_case(case.folder, found))


def _model(transformer: Transformer, size: tuple[int, int], grid: tuple[int, ...]) -> Meissonic:
    """The base with a text encoder and a codec that hold nothing."""
    sizes = transformer.config
    text = TextConfig(
        vocab_size=3,
        hidden_size=sizes.text_width,
        intermediate_size=1,
        projection_dim=sizes.width,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    levels = (size[0] // grid[0]).bit_length()
    codec = VQConfig(
        block_out_channels=(1,) * levels,
        layers_per_block=1,
        latent_channels=1,
        num_vq_embeddings=sizes.codebook_size,
        norm_num_groups=1,
    )
    absent: Any = None
    encoder = TextEncoder(text, nn.Module(), Tokenizer(absent, 1))
    return Meissonic(transformer, encoder, VQCodec(codec, nn.Module()), size=size)
