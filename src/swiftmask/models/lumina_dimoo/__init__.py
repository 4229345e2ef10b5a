"""Lumina-DiMOO (arXiv 2510.06308): text-to-image, an 8B LLaDA backbone over text and image codes."""

from swiftmask.models.lumina_dimoo.generator import LuminaDiMOO
from swiftmask.models.lumina_dimoo.released import FAMILY, WEIGHTS_FILES

__all__ = ["FAMILY", "WEIGHTS_FILES", "LuminaDiMOO"]
