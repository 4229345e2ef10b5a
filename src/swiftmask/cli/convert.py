"""`swiftmask convert`: released weights to a folder `load` and `accelerate` read."""

import json as json_module
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from swiftmask.training.lock import sole_writer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from swiftmask.core.families import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """Turn released weights into a folder. Their keys and shapes identify them.

    Files are read without running anything inside them; every key and shape is checked.
    """

    source: Positional[str]
    """A model's file (with --codec), folder or Hugging Face repo id, or a shortcut's file (with --base)."""
    out: Path
    """Folder to write."""
    codec: Path | None = None
    """The tokenizer of a model's file: VQGAN/last.ckpt of MaskGIT, kl16.ckpt of MAR."""
    text_encoder: str | None = None
    """Folder or repo id of another CLIP text encoder, for Meissonic."""
    base: str | None = None
    """For a shortcut: the model it was trained for."""
    num_heads: int | None = None
    """Attention heads, which no file tells (default: those of the released file)."""
    codebook_size: int | None = None
    """Codes of MaskGIT's tokenizer, which no file tells (default: 1024)."""
    resolution: int | None = None
    """Nominal resolution of MaskGIT's tokenizer, which no file tells (default: 256)."""
    dtype: str = "auto"
    """Of the weights on disk (default: bfloat16 for Lumina-DiMOO, float32 for the others)."""
    overwrite: bool = False
    """Replace a folder that is there already."""
    json: bool = False
    """Print the sizes as JSON."""

    def run(self) -> int:
        if self.base is not None and (self.codec is not None or self.text_encoder is not None):
            raise ValueError("--base is for a shortcut, --codec and --text-encoder are for a model: give one")
        if (self.out / "config.json").exists() and not self.overwrite:
            raise ValueError(f"{self.out} holds a model already: name another folder, or add --overwrite")
        sizes = self._model() if self.base is None else self._shortcut(self.base)
        if self.json:
            print(json_module.dumps({"out": str(self.out), **sizes}, indent=2))
        else:
            for part, found in sizes.items():
                print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
            print(f"written to {self.out}")
        return 0

    def _model(self) -> dict[str, dict[str, object]]:
        from swiftmask.api import load_with

        pipeline = load_with(self.source, self._reading(), text_encoder=self.text_encoder)
        model = pipeline.model
        facts = {"converted_from": [Path(self.source).name, *([self.codec.name] if self.codec else [])]}
        with sole_writer(self.out):
            model.save_pretrained(  # type: ignore[attr-defined]
                self.out, provenance=facts, dtype=self._dtype(pipeline.dtype)
            )
        return _sizes(model)  # type: ignore[arg-type]

    def _dtype(self, own: "torch.dtype") -> "torch.dtype":
        """On disk."""
        from swiftmask.api import dtype_named

        return own if self.dtype == "auto" else dtype_named(self.dtype)

    def _reading(self) -> "Reading":
        """On the CPU, in the family's own precision."""
        from swiftmask.core.families import Reading

        return Reading(
            codec=self.codec,
            num_heads=self.num_heads,
            codebook_size=self.codebook_size,
            resolution=self.resolution,
        )

    def _shortcut(self, base_name: str) -> dict[str, dict[str, object]]:
        from swiftmask.api import find_method, load
        from swiftmask.methods.shortcut import read_shortcut, write_shortcut

        path = find_method(self.source, "shortcut")
        base = load(base_name, device="cpu")
        shortcut = read_shortcut(path, num_heads=self.num_heads, base=base.model.spec)
        with sole_writer(self.out):
            write_shortcut(
                self.out,
                shortcut,
                base=base.model.spec,
                base_name=base.name,
                provenance={"converted_from": [path.name]},
                dtype=self._dtype(next(shortcut.parameters()).dtype),
            )
        return {"shortcut": _size(shortcut)}


def _sizes(model: "nn.Module") -> dict[str, dict[str, object]]:
    """Of every part that has sizes."""
    return {
        name: _size(part)
        for name, part in model.named_children()
        if is_dataclass(getattr(part, "config", None))
    }


def _size(part: "nn.Module") -> dict[str, object]:
    num_parameters = sum(parameter.numel() for parameter in part.parameters())
    return {"parameters": num_parameters, **asdict(part.config)}  # type: ignore[call-overload]
