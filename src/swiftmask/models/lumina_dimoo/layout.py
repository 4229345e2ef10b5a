"""Where things stand in Lumina-DiMOO's sequences (arXiv 2510.06308, section 3.1).

    prompt, <answer>, <IMAGE>, then per row of the image its codes and a newline, </IMAGE>, </answer>

An image's codes follow the text in one vocabulary. There is no size token: newlines alone tell the size, and
like all special tokens they are seen at every step and never sampled. Rows of a batch are padded on the left,
so that the image stands in the same columns of every row; padding is no key of attention, and places count
from the first token that is not padding, so that a row is what it would be alone.

Nothing outside this folder knows of any of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from swiftmask.core.arguments import check_size
from swiftmask.core.ranges import check_fields

_BEFORE = 2
"""Special tokens between the prompt and the first code."""

_PADDING_ID = 0

Sampler = Literal["exact", "bf16_compat"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """Token ids. Defaults are the released model's.

    Attributes:
        first_code: id of code 0; the others follow.
    """

    mask: int = 126336
    newline: int = 126084
    image_start: int = 126349
    image_end: int = 126350
    answer_start: int = 126354
    answer_end: int = 126355
    first_code: int = 126356
    codebook_size: int = 8192

    def __post_init__(self) -> None:
        check_fields(self)
        ids = self._special_ids()
        codes = range(self.first_code, self.first_code + self.codebook_size)
        if len({*ids}) < len(ids) or any(one in codes for one in ids):
            raise ValueError(f"special tokens must differ from each other and from the codes, got {self}")

    @classmethod
    def after(cls, num_ids: int, *, codebook_size: int) -> Self:
        """For a small model: first the ids of words, then the special tokens, then the codes."""
        mask, newline, image_start, image_end, answer_start, answer_end, first_code = range(
            num_ids, num_ids + 7
        )
        return cls(
            mask=mask,
            newline=newline,
            image_start=image_start,
            image_end=image_end,
            answer_start=answer_start,
            answer_end=answer_end,
            first_code=first_code,
            codebook_size=codebook_size,
        )

    @property
    def size(self) -> int:
        """The smallest vocabulary that holds these ids."""
        return 1 + max(*self._special_ids(), self.first_code + self.codebook_size - 1)

    def check_words(self, num_ids: int) -> None:
        """Errors: ValueError if a special token or a code has one of the first ids, which words take."""
        if min(*self._special_ids(), self.first_code) < num_ids:
            raise ValueError(f"the first {num_ids} ids are words, got {self}")

    def _special_ids(self) -> tuple[int, ...]:
        return (
            self.mask,
            self.newline,
            self.image_start,
            self.image_end,
            self.answer_start,
            self.answer_end,
        )


@dataclass(frozen=True, slots=True)
class PromptCondition:
    """Prompts of a batch, padded on the left to one length; conditional rows first, then null rows.

    Attributes:
        prompts_XP: ids [num_branches * B, P].
        pad_X: `padding` on the device: int64.
        lengths: of the prompts without padding, known to the host.
        null_ids: the prompt of the null branch.
    """

    prompts_XP: Tensor
    pad_X: Tensor
    lengths: tuple[int, ...]
    null_ids: tuple[int, ...]
    num_branches: int = 1

    @classmethod
    def of(
        cls,
        prompts: Sequence[Sequence[int]],
        null_ids: Sequence[int],
        device: torch.device | str,
    ) -> Self:
        """Pad prompts, moving them to the device at once. Errors: ValueError if there is none."""
        if not prompts:
            raise ValueError("give at least one prompt")
        longest = max(len(prompt) for prompt in prompts)
        padded = [[_PADDING_ID] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        lengths = tuple(len(prompt) for prompt in prompts)
        pad_X = torch.tensor([longest - length for length in lengths], dtype=torch.int64)
        prompts_XP = torch.tensor(padded, dtype=torch.int64)
        return cls(prompts_XP.to(device), pad_X.to(device), lengths, tuple(null_ids))

    def __len__(self) -> int:
        return len(self.lengths) // self.num_branches

    @property
    def padding(self) -> tuple[int, ...]:
        """How much of each row is padding, known to the host: attention goes by it without a mask."""
        return tuple(max(self.lengths) - length for length in self.lengths)

    def places(self, num_rows: int) -> Tensor:
        """Place of each column in its own sequence, negative for padding: int64 [X, T]."""
        return torch.arange(num_rows, device=self.pad_X.device) - self.pad_X[:, None]

    def with_null(self) -> Self:
        """The same prompts, with the null prompt for every image beside them."""
        longest, null = max(self.lengths), self.null_ids
        width = max(longest, len(null))
        ids_1P = torch.tensor([[_PADDING_ID] * (width - len(null)) + list(null)], dtype=torch.int64)
        count, wider = len(self.lengths), width - longest
        padded_XP = F.pad(self.prompts_XP, (wider, 0), value=_PADDING_ID)
        pad_X = torch.cat([self.pad_X + wider, torch.full_like(self.pad_X, width - len(null))])
        return type(self)(
            torch.cat([padded_XP, ids_1P.to(padded_XP.device).expand(count, -1)]),
            pad_X,
            self.lengths + (len(null),) * count,
            null,
            2,
        )


@dataclass(frozen=True, slots=True)
class Layout:
    """The image's part of a sequence.

    Attributes:
        grid: rows and columns of codes.
    """

    vocabulary: Vocabulary
    grid: tuple[int, int]

    @property
    def num_image_rows(self) -> int:
        """Columns of a batch that the image takes, with newlines and the four tokens around it."""
        return self.grid[0] * (self.grid[1] + 1) + 4

    def sequence(self, prompts_XP: Tensor, codes_BL: Tensor, masked_BL: Tensor) -> Tensor:
        """Ids [X, T] of whole sequences, for X a multiple of B; what a masked code is does not matter."""
        words, batch = self.vocabulary, len(codes_BL)
        ids_BL = (codes_BL + words.first_code).masked_fill_(masked_BL, words.mask)
        rows_BHW = ids_BL.unflatten(1, self.grid)
        newlines_BH1 = torch.full_like(rows_BHW[..., :1], words.newline)
        image_BR = torch.cat([rows_BHW, newlines_BH1], dim=-1).flatten(1)
        column_B1 = image_BR[:, :1]
        before, after = (words.answer_start, words.image_start), (words.image_end, words.answer_end)
        parts = [torch.full_like(column_B1, word) for word in before]
        parts += [image_BR, *(torch.full_like(column_B1, word) for word in after)]
        repeats = len(prompts_XP) // batch
        return torch.cat([prompts_XP, torch.cat(parts, dim=1).repeat(repeats, 1)], dim=1)

    def columns(self, positions_BN: Tensor, num_rows: int) -> Tensor:
        """Columns of codes in sequences `num_rows` long."""
        row_BN = torch.div(positions_BN, self.grid[1], rounding_mode="floor")
        return positions_BN + row_BN + (num_rows - self.num_image_rows + _BEFORE)


def grid_of(height: int, width: int, patch: int) -> tuple[int, int]:
    """The grid of an image whose codes are `patch` pixels wide. Errors: ValueError unless both sides are
    multiples of that.
    """
    check_size((height, width), patch)
    return height // patch, width // patch
