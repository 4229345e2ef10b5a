"""Meissonic and Monetico as released: text-to-image, confidence unmasking, CLIP text encoder, VQGAN."""

from swiftmask.models.meissonic.generator import Meissonic
from swiftmask.models.meissonic.prompts import RELEASED_NEGATIVE, Prompt, with_negative
from swiftmask.models.meissonic.released import FAMILY, WEIGHTS_FILES

__all__ = ["FAMILY", "RELEASED_NEGATIVE", "WEIGHTS_FILES", "Meissonic", "Prompt", "with_negative"]
