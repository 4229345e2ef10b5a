"""How MaskGIT is published: two loose files, told by their keys."""

from pathlib import Path

from swiftmask.core.families import Family, Reading, WeightsFile, own_reader, placed
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.models.maskgit.generator import MaskGIT
from swiftmask.models.maskgit.weights import is_newer_family

WEIGHTS_FILES = (
    WeightsFile(
        what="a MaskGIT transformer (valeoai v1.0)",
        role="model",
        keys=("pos_emb", "tok_emb.weight", "bias", "transformer.layers.0.1.fn.net.0.weight"),
        use="give its tokenizer too, codec='VQGAN/last.ckpt'",
        fits=lambda state: not is_newer_family(state),
    ),
    WeightsFile(
        what="a taming VQGAN, the tokenizer of MaskGIT",
        role="codec",
        keys=("quantize.embedding.weight", "encoder.down.0.block.0.conv1.weight", "decoder.conv_in.weight"),
        use="load MaskGIT_ImageNet_512.pth (or _256) and give this file as its codec",
    ),
    WeightsFile(
        what="a transformer of valeoai's newer family (Halton-MaskGIT)",
        role="other",
        keys=(),
        use="it has other layers: give the v1.0 files, MaskGIT_ImageNet_256.pth or _512.pth",
        fits=is_newer_family,
    ),
)


def _read_released(source: Path, reading: Reading) -> MaskedGenerator:
    assert reading.codec is not None
    chosen = reading.chosen("num_heads", "codebook_size", "resolution")
    return placed(MaskGIT.from_released(source, reading.codec, **chosen), reading)


FAMILY = Family(
    draws="class",
    layout="maskgit: MaskGIT_ImageNet_256.pth or _512.pth with VQGAN/last.ckpt",
    options=frozenset({"codec", "num_heads", "codebook_size", "resolution"}),
    read_released=_read_released,
    read_own=own_reader(MaskGIT.from_pretrained),
)
