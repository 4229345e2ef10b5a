"""`swiftmask convert`: released weights to a folder `load` and `accelerate` read."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional


@dataclass(frozen=True, slots=True, kw_only=True)
class Convert:
    """Turn released weights into a folder: a MaskGIT file with --codec, or a shortcut's with --base.

    Files are read without running anything inside them; every key and shape is checked.
    """

    source: Positional[Path]
    """MaskGIT_ImageNet_*.pth, or a shortcut's .pth."""
    out: Path
    """Folder to write."""
    codec: Path | None = None
    """The tokenizer, VQGAN/last.ckpt."""
    base: str | None = None
    """For a shortcut: the model it was trained for."""
    num_heads: int | None = None
    """Attention heads, which no file tells (default: those of the released file)."""
    codebook_size: int = 1024
    """Codes of the tokenizer, which no file tells."""
    resolution: int = 256
    """Nominal resolution of the tokenizer, which no file tells."""
    dtype: str = "float32"
    """Of the weights on disk."""
    overwrite: bool = False
    """Replace a folder that is there already."""
    json: bool = False
    """Print the sizes as JSON."""

    def run(self) -> int:
        if (self.codec is None) == (self.base is None):
            raise ValueError(
                "give --codec VQGAN/last.ckpt for a MaskGIT file, or --base MODEL for a shortcut's"
            )
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"--out {self.out} is a file: name a folder")
        if (self.out / "config.json").exists() and not self.overwrite:
            raise ValueError(f"{self.out} holds a model already: name another folder, or add --overwrite")
        sizes = self._model(self.codec) if self.codec is not None else self._shortcut(str(self.base))
        if self.json:
            print(json_module.dumps({"out": str(self.out), **sizes}, indent=2))
        else:
            for part, found in sizes.items():
                print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in found.items()))
            print(f"written to {self.out}")
        return 0

    def _model(self, codec_path: Path) -> dict[str, dict[str, object]]:
        from swiftmask.api import dtype_named
        from swiftmask.models.maskgit import MaskGIT

        model = MaskGIT.from_released(
            self.source,
            codec_path,
            codebook_size=self.codebook_size,
            resolution=self.resolution,
            **({} if self.num_heads is None else {"num_heads": self.num_heads}),
        )
        facts = {"converted_from": [self.source.name, codec_path.name]}
        model.save_pretrained(self.out, provenance=facts, dtype=dtype_named(self.dtype))
        return {
            name: {"parameters": _count(part), **asdict(part.config)}
            for name, part in (("transformer", model.transformer), ("codec", model.codec))
        }

    def _shortcut(self, base_name: str) -> dict[str, dict[str, object]]:
        from swiftmask.api import dtype_named, load
        from swiftmask.methods.shortcut import read_shortcut, write_shortcut

        if not self.source.exists():
            raise FileNotFoundError(f"no such shortcut file: {self.source}")
        base = load(base_name)
        shortcut = read_shortcut(self.source, num_heads=self.num_heads, base=base.model.spec)
        write_shortcut(
            self.out,
            shortcut,
            base=base.model.spec,
            base_name=base.name,
            provenance={"converted_from": [self.source.name]},
            dtype=dtype_named(self.dtype),
        )
        return {"shortcut": {"parameters": _count(shortcut), **asdict(shortcut.config)}}


def _count(module: object) -> int:
    return sum(parameter.numel() for parameter in module.parameters())  # type: ignore[attr-defined]
