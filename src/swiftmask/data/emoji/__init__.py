"""Emoji: 1,563 concepts, each drawn by designers in four styles, with Unicode short names as captions.

6,252 images of four emoji sets whose licences allow redistribution: Noto (Apache-2.0), Twemoji (CC-BY-4.0),
Fluent and Fluent flat (MIT). `swiftmask data emoji` builds an image folder of them (docs/emoji.md).
"""

from swiftmask.data.emoji.build import NUM_IMAGES, build_emoji
from swiftmask.data.emoji.records import (
    STYLES,
    EmojiRecord,
    free_prompts,
    held_out_prompts,
    trained_prompts,
)

__all__ = [
    "NUM_IMAGES",
    "STYLES",
    "EmojiRecord",
    "build_emoji",
    "free_prompts",
    "held_out_prompts",
    "trained_prompts",
]
