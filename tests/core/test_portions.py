"""Images decoded a few at a time are those decoded all at once."""

import pytest
import torch
from torch import Tensor

from swiftmask.core import portions
from swiftmask.core.portions import in_portions
from swiftmask.core.protocol import MaskedGenerator
from swiftmask.models.lumina_dimoo import LuminaDiMOO
from swiftmask.models.mar import MAR
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.meissonic import Meissonic


@pytest.mark.parametrize(
    ("side", "expected"), [(1024, [3, 2]), (1254, [2, 2, 1]), (512, [5]), (2048, [1] * 5)]
)
def test_how_many_images_go_together(side: int, expected: list[int]) -> None:
    sizes: list[int] = []

    def decode(tokens_BL: Tensor) -> Tensor:
        sizes.append(len(tokens_BL))
        return 2 * tokens_BL

    tokens_BL = torch.arange(10).view(5, 2)
    assert torch.equal(in_portions(decode, tokens_BL, num_pixels=side**2), 2 * tokens_BL)
    assert sizes == expected


@pytest.fixture(params=["maskgit", "mar", "meissonic", "lumina_dimoo"])
def model(request: pytest.FixtureRequest) -> MaskedGenerator:
    fixture = {"lumina_dimoo": "dimoo"}.get(request.param, request.param)
    return request.getfixturevalue(f"golden_{fixture}")


def test_every_family_decodes_in_portions(model: MaskedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the byte; counted at the codec."""
    assert isinstance(model, MaskGIT | MAR | Meissonic | LuminaDiMOO)
    count = model.spec.num_tokens
    if model.spec.codebook_size is None:
        tokens_BL = torch.randn(5, count, model.spec.channels or 0)
    else:
        tokens_BL = torch.randint(model.spec.codebook_size, (5, count))
    sizes: list[int] = []
    decode = model.codec.decode

    def counted(codes: Tensor) -> Tensor:
        sizes.append(len(codes))
        return decode(codes)

    monkeypatch.setattr(model.codec, "decode", counted)
    whole_B3HW = model.to_pixels(tokens_BL)
    num_pixels = whole_B3HW[0, 0].numel()
    monkeypatch.setattr(portions, "PIXELS_TOGETHER", 3 * num_pixels + 1)
    assert torch.equal(model.to_pixels(tokens_BL), whole_B3HW)
    assert sizes == [5, 3, 2]
