"""The options that say what is generated and what scores it, shared by the commands that measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swiftmask.data.images import Decoding

PIXELS = "pixels"
"""Names the difference from the full model's images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is generated and how it is scored.

    Attributes:
        scorer: what scores the images, any number: an extractor as NAME=PATH (a TorchScript file, a reader's
            folder or a Hugging Face folder; needs --reference); clip, pickscore, hps or aesthetic, each with
            =PATH of its weights; reader=PATH (made by `swiftmask train reader`; prompts then need its
            columns); http://HOST:PORT; MODULE:FUNCTION; pixels; efficientnet-lite0; scenes (default: scenes
            of a model that generates Scenes, else features of efficientnet-lite0 if that is installed, else
            of Scenes' judge).
        reference: real images: a folder, hub:OWNER/NAME, or a file of statistics (.npz, .safetensors).
        prompts: file of prompts, for a text-to-image model: one a line, or .jsonl or .csv with columns
            prompt, negative_prompt and seed (default: captions of the reference).
        classes: generate the first so many classes (default: all the model knows).
        truncate: cut prompts that are too long for the model instead of refusing them.
        background: colour behind real images that are transparent: a name, or #rrggbb.
        ignore_orientation: leave real images as they are stored instead of turning them as EXIF says.
    """

    scorer: tuple[str, ...] = ()
    reference: str | None = None
    prompts: Path | None = None
    classes: int | None = None
    truncate: bool = False
    background: str = "white"
    ignore_orientation: bool = False

    def decoding(self) -> "Decoding":
        """How real images are read."""
        from swiftmask.data.images import Decoding

        return Decoding(background=self.background, orientation=not self.ignore_orientation)

    def check(self) -> None:
        """Errors: ValueError or FileNotFoundError for what is wrong before anything is loaded."""
        from swiftmask.evaluate.extractors import PACKAGED
        from swiftmask.rewards.named import READER, Entry, require_weights

        self.decoding()  # complains about a background that is no colour
        if not str(self.reference).startswith(("hub:", "scenes:")):
            require_reference(Path(self.reference or ".").expanduser())
        for text in self.scorer:
            _, _, source = text.rpartition("=")
            if text.partition("=")[0] == READER:
                require_weights(Entry.parsed(text))
            if is_extractor(text):
                if source != PACKAGED and not Path(source).expanduser().exists():
                    raise FileNotFoundError(
                        f"--scorer {text}: there is no {source} (expected a reward's name, a TorchScript "
                        "file, or a Hugging Face folder: `hf download ORG/NAME --local-dir FOLDER` gets one)"
                    )
                if self.reference is None:
                    raise ValueError(f"--scorer {text} compares with real images: add --reference FOLDER")


def require_reference(path: Path) -> None:
    """Errors: FileNotFoundError."""
    if not path.exists():
        raise FileNotFoundError(
            f"no such reference: {path} (expected a folder of real images, or a .npz or .safetensors file of "
            "their statistics)"
        )


def is_extractor(text: str) -> bool:
    """Whether a scorer is no reward and not `pixels`."""
    from swiftmask.evaluate.extractors import JUDGE
    from swiftmask.rewards.named import NAMES

    name = text.partition("=")[0]
    is_path = Path(name).suffix in (".pt", ".pth") or Path(name).expanduser().exists()
    return is_path or not (name in (*NAMES, JUDGE, PIXELS) or text.startswith("http") or ":" in name)
