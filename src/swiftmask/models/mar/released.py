"""How MAR is published: two loose files, told by their keys."""

from pathlib import Path

from swiftmask.core.families import Family, Reading, WeightsFile, own_reader, placed
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.models.mar.generator import MAR

WEIGHTS_FILES = (
    WeightsFile(
        what="a MAR network",
        role="model",
        keys=("z_proj.weight", "encoder_pos_embed_learned", "diffloss.net.input_proj.weight"),
        use="give its tokenizer too, codec='kl16.ckpt'",
    ),
    WeightsFile(
        what="a KL autoencoder, the tokenizer of MAR",
        role="codec",
        keys=("quant_conv.weight", "encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"),
        use="load MAR's checkpoint-last.pth and give this file as its codec",
        fits=lambda state: "quantize.embedding.weight" not in state,
    ),
)


def _read_released(source: Path, reading: Reading) -> MaskedGenerator:
    assert reading.codec is not None
    return placed(MAR.from_released(source, reading.codec, **reading.chosen("num_heads")), reading)


FAMILY = Family(
    draws="class",
    layout="mar: checkpoint-last.pth (mar_base, mar_large or mar_huge) with kl16.ckpt",
    options=frozenset({"codec", "num_heads"}),
    read_released=_read_released,
    read_own=own_reader(MAR.from_pretrained),
)
