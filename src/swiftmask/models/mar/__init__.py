"""MAR (arXiv 2406.11838): class-conditional, continuous tokens in random order, from a diffusion head."""

from swiftmask.models.mar.generator import MAR

Generator = MAR
"""The name under which every model folder exports its class."""

__all__ = ["MAR", "Generator"]
