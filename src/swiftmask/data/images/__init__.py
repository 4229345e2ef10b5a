"""Images on disk: how they are listed, read and cropped."""

from swiftmask.data.images.cropping import centre_crop
from swiftmask.data.images.decode import Decoding, open_image, to_rgb

__all__ = [
    "Decoding",
    "centre_crop",
    "open_image",
    "to_rgb",
]
