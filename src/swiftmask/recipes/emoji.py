"""What the presets of Emoji share: where the images and the tokenizers are, and the optimisation.

Emoji is a folder of images with metadata (docs/emoji.md), so every preset is settings of a trainer that knows
nothing of it. Paths are those of `swiftmask data emoji --out runs/emoji` and of the presets themselves.
"""

from dataclasses import replace
from typing import Any, Literal

from swiftmask.data.sources import DataConfig
from swiftmask.recipes import tokenizer
from swiftmask.recipes.base_model import BaseModelRecipe, base_recipe
from swiftmask.recipes.reader import ReaderRecipe
from swiftmask.recipes.reader import recipe as any_reader
from swiftmask.recipes.tokenizer import TokenizerRecipe
from swiftmask.registry import bundled_names
from swiftmask.training.setup import TrainingConfig

DATA = "runs/emoji"
TOKENIZER, CODEC = "emoji-tokenizer", "emoji-codec"
REWARD, JUDGE = "emoji-reward", "emoji-judge"
PAIRS = DataConfig(classes=("concept", "style"))
"""Classes are concepts in styles."""


def made(name: str) -> str:
    """The weights of a preset: bundled, or where its run left them."""
    return name if name in bundled_names() else f"runs/{name}/model"


def reader_entry(name: str) -> str:
    """A reader as a reward or a judge."""
    return f"reader={made(name)}"


def emoji_tokenizer(name: str, kind: Literal["vq", "kl"]) -> TokenizerRecipe:
    """Codes or latents of 64 px images, 16x16.

    Half of the codes are kept: of 1,024, k-means gave 98 to a plain white background, and which of them a
    place has is noise that a model would have to learn (docs/log.md). The codes were trained before Muon took
    convolutions, which learns in a third of the updates.
    """
    training = TrainingConfig(
        num_steps=2400 if kind == "vq" else 1200,
        batch_size=16,
        learning_rate=1e-3,
        muon_learning_rate=None if kind == "vq" else 4e-3,
        warmup_steps=100,
        ema_decay=0.998,
        precision="no",
        save_every=50,
    )
    kept = 512 if kind == "vq" else None
    return replace(tokenizer.recipe(), name=name, data=DATA, kind=kind, kept_codes=kept, training=training)


def emoji_model(
    name: str, family: str, *, num_steps: int, batch_size: int, **settings: Any
) -> BaseModelRecipe:
    """A model of at most 8 MB in float16, tokenizer included. Not trained yet: `dimoo-emoji`."""
    training = TrainingConfig(
        num_steps=num_steps,
        batch_size=batch_size,
        learning_rate=3e-3,
        muon_learning_rate=6e-3,
        warmup_steps=150,
        ema_decay=0.998,
        precision="no",
        save_every=200,
    )
    return base_recipe(family, training, name=name, data=DATA, **({"tokenizer": made(TOKENIZER)} | settings))


def emoji_reader(
    name: str,
    network: Literal["conv", "transformer"],
    size: Literal["small", "base"],
    *,
    num_steps: int,
    seed: int,
) -> ReaderRecipe:
    """Tells concept, style and group, from all images: a judge has to know what held-out pairs look like."""
    base = any_reader()
    training = replace(base.training, num_steps=num_steps, batch_size=32, seed=seed)
    return replace(
        base,
        name=name,
        data=DATA,
        columns=("concept", "style", "group"),
        network=network,
        size=size,
        tokenizer=made(TOKENIZER),
        all_images=True,
        training=training,
    )
