"""How shortcuts are published: one file each, told by its keys."""

from swiftmask.core.families import WeightsFile

_USE = "load its base model, and pass this file to accelerate(model, shortcut=...) (--shortcut FILE)"

WEIGHTS_FILES = (
    WeightsFile(
        what="a MIGM shortcut for Lumina-DiMOO",
        role="other",
        keys=("blocks.0.cross_attn.q_proj.weight", "blocks.0.cross_attn.ff_proj.weight"),
        use=_USE,
    ),
    WeightsFile(
        what="a MIGM shortcut for MaskGIT",
        role="other",
        keys=("blocks.0.cross_attn.norm.weight", "blocks.0.cross_attn_ff.fn.net.0.weight"),
        use=_USE,
    ),
)
