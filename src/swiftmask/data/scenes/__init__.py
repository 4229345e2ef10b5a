"""Scenes: endless 64x64 images of one to three coloured shapes, with captions, classes and checkable
facts.

`world` draws the generating parameters from integer seeds, `render` turns them into pixels, `facts` checks
what is stated about them, `captions` writes and reads the small grammar. Axes: `B` image, `O` object
slot, `H W` pixels.
"""

from swiftmask.data.scenes.captions import captions, parse_caption, parse_captions
from swiftmask.data.scenes.facts import (
    FACT_KINDS,
    Facts,
    caption_facts,
    check,
    check_kinds,
    class_facts,
)
from swiftmask.data.scenes.mixture import World
from swiftmask.data.scenes.render import render
from swiftmask.data.scenes.world import (
    CLASS_NAMES,
    COLOURS,
    MAX_OBJECTS,
    NUM_CLASSES,
    PATTERNS,
    SHAPES,
    SIZES,
    Scenes,
    class_attributes,
    class_scenes,
    concat_scenes,
    sample_scenes,
    simple_scenes,
)

__all__ = [
    "CLASS_NAMES",
    "COLOURS",
    "FACT_KINDS",
    "MAX_OBJECTS",
    "NUM_CLASSES",
    "PATTERNS",
    "SHAPES",
    "SIZES",
    "Facts",
    "Scenes",
    "World",
    "caption_facts",
    "captions",
    "check",
    "check_kinds",
    "class_attributes",
    "class_facts",
    "class_scenes",
    "concat_scenes",
    "parse_caption",
    "parse_captions",
    "render",
    "sample_scenes",
    "simple_scenes",
]
