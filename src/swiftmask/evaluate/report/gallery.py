"""Pictures of several rows at equal seeds, as a page that opens offline carries them."""

import base64
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from torch import Tensor

from swiftmask.data.images.pixels import to_pil

_LOSSLESS_UP_TO = 128
"""Pixels of a side; above, PNG would make pages of tens of megabytes."""

_JPEG_QUALITY = 93


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """The same pictures drawn by every row.

    Attributes:
        captions: what each picture was asked to be, and its seed.
        images: data URIs by row name, one per caption.
    """

    captions: tuple[str, ...]
    images: dict[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        uneven = [name for name, images in self.images.items() if len(images) != len(self.captions)]
        if uneven:
            raise ValueError(
                f"every row needs one image per caption ({len(self.captions)}): "
                f"{uneven[0]} has {len(self.images[uneven[0]])}"
            )


def picture_uri(image_3HW: Tensor, *, at_most: int | None = None) -> str:
    """A picture in [0, 1] as a data URI: PNG where it is small, else JPEG without colour subsampling.

    Args:
        at_most: shrink the picture until no side is longer.
    """
    (image,) = to_pil(image_3HW[None])
    if at_most is not None:
        image.thumbnail((at_most, at_most), Image.Resampling.BOX)
    buffer = BytesIO()
    if max(image.size) <= _LOSSLESS_UP_TO:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0)
    kind = "png" if max(image.size) <= _LOSSLESS_UP_TO else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
