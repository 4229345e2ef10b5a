"""Meissonic and Monetico as released: text-to-image, confidence unmasking, CLIP text encoder, VQGAN."""

from swiftmask.models.meissonic.generator import Meissonic
from swiftmask.models.meissonic.generator import Meissonic as Generator
from swiftmask.models.meissonic.prompts import RELEASED_NEGATIVE, Prompt, with_negative

__all__ = ["RELEASED_NEGATIVE", "Generator", "Meissonic", "Prompt", "with_negative"]
