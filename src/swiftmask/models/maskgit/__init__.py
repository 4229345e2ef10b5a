"""MaskGIT as released by valeoai (v1.0): class-conditional, confidence unmasking, taming VQGAN."""

from swiftmask.models.maskgit.generator import MaskGIT
from swiftmask.models.maskgit.released import FAMILY, WEIGHTS_FILES

__all__ = ["FAMILY", "WEIGHTS_FILES", "MaskGIT"]
