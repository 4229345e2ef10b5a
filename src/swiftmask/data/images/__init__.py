"""Folders of real images, and the latents of their every image cached in one file for training."""

from swiftmask.data.images.cache import cache_latents
from swiftmask.data.images.decode import Decoding, open_picture, to_rgb
from swiftmask.data.images.folder import ImageFolder, centre_crop, mirrored_at_random
from swiftmask.data.images.index import CacheIndex
from swiftmask.data.images.latents import CachedLatents

__all__ = [
    "CacheIndex",
    "CachedLatents",
    "Decoding",
    "ImageFolder",
    "cache_latents",
    "centre_crop",
    "mirrored_at_random",
    "open_picture",
    "to_rgb",
]
