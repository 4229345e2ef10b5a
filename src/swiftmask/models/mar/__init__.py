"""MAR (arXiv 2406.11838): class-conditional, continuous tokens in random order, from a diffusion head."""

from swiftmask.models.mar.generator import MAR
from swiftmask.models.mar.released import FAMILY, WEIGHTS_FILES

__all__ = ["FAMILY", "MAR", "WEIGHTS_FILES"]
