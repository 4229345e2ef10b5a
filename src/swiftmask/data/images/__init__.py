"""Images on disk: how they are listed, read and cropped."""

from swiftmask.data.images.decode import Decoding, open_picture, to_rgb
from swiftmask.data.images.folder import ImageFolder, centre_crop

__all__ = [
    "Decoding",
    "ImageFolder",
    "centre_crop",
    "open_picture",
    "to_rgb",
]
