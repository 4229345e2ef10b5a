"""How Lumina-DiMOO is published: a folder of shards with the codec below it.

Its weights are read straight into their precision and place, never into float32 first: that would be 32 GB.
"""

from pathlib import Path

import torch

from swiftmask.core.families import Family, Reading, WeightsFile
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.settings import read_json
from swiftmask.models.lumina_dimoo.generator import LuminaDiMOO

WEIGHTS_FILES = (
    WeightsFile(
        what="a shard of Lumina-DiMOO's backbone",
        role="other",
        keys=(),
        use="load the whole folder (config.json, all shards with their index, the tokenizer's files, vqvae/)",
        fits=lambda state: any(key.startswith("model.transformer.") for key in state),
    ),
)


def _is_released_folder(folder: Path) -> bool:
    try:
        return read_json(folder / "config.json").get("model_type") == "llada"
    except (OSError, ValueError):  # complained of when it is read
        return False


def _read_released(source: Path, reading: Reading) -> MaskedGenerator:
    return LuminaDiMOO.from_released(
        source,
        dtype=reading.dtype or torch.bfloat16,
        device=reading.device,
        blocks_on_device=reading.blocks_on_device,
    )


def _read_own(source: Path, reading: Reading) -> MaskedGenerator:
    return LuminaDiMOO.from_pretrained(
        source, dtype=reading.dtype, device=reading.device, blocks_on_device=reading.blocks_on_device
    )


FAMILY = Family(
    draws="prompt",
    layout="lumina_dimoo: config.json (model_type llada), model*.safetensors, tokenizer.json and vqvae/",
    options=frozenset({"blocks_on_device"}),
    own_options=frozenset({"blocks_on_device"}),
    is_released_folder=_is_released_folder,
    read_released=_read_released,
    read_own=_read_own,
)
