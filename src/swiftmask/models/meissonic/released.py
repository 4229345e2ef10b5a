"""How Meissonic is published: a folder with a sub-folder for each part."""

from pathlib import Path

from swiftmask.core.families import Family, Reading, WeightsFile, own_reader, placed
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.models.meissonic.generator import Meissonic

WEIGHTS_FILES = (
    WeightsFile(
        what="the transformer of Meissonic alone",
        role="other",
        keys=("transformer_blocks.0.attn.norm_q.weight", "embed.embeddings.weight"),
        use="load the whole folder (transformer/, vqvae/, text_encoder/, tokenizer/, scheduler/)",
    ),
    WeightsFile(
        what="a diffusers VQModel, the codec of Meissonic and Lumina-DiMOO",
        role="other",
        keys=("quantize.embedding.weight", "encoder.down_blocks.0.resnets.0.conv1.weight"),
        use="load the whole folder that vqvae/ is in",
    ),
    WeightsFile(
        what="a CLIP text encoder",
        role="other",
        keys=("text_model.embeddings.token_embedding.weight",),
        use="load a Meissonic folder, and give the folder of this file as its text_encoder",
    ),
)


def _is_released_folder(folder: Path) -> bool:
    return (folder / "transformer").is_dir()


def _read_released(source: Path, reading: Reading) -> MaskedGenerator:
    return placed(Meissonic.from_released(source, text_encoder=reading.text_encoder), reading)


FAMILY = Family(
    draws="prompt",
    layout="meissonic: transformer/, vqvae/, text_encoder/, tokenizer/ and scheduler/",
    options=frozenset({"text_encoder"}),
    is_released_folder=_is_released_folder,
    read_released=_read_released,
    read_own=own_reader(Meissonic.from_pretrained),
)
