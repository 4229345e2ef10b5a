"""Blocks that wait in host memory and visit the device one at a time, for cards that the model does not fit.

Where the weights of a block lie is all there is to say: a block on the device of its input runs as it is, any
other is copied into one of two places there, the next one while the last one computes. A step so reads the
waiting blocks over the bus once, for both guidance branches and all images of a batch.
Left out: accelerate's hooks, which follow calls of `forward`; these blocks are run in parts.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from swiftmask.core.llama import LlamaBlock

NUM_PLACES = 2
"""Blocks' worth of memory on the device that visitors take turns in."""


def arriving(blocks: Sequence[LlamaBlock], device: torch.device) -> Iterable[LlamaBlock]:
    """The blocks in order, each with its weights on `device` until the next one is asked for."""
    waiting = [block.qkv_weight.device != device for block in blocks]
    return visiting(blocks, waiting, device) if any(waiting) else blocks


def visiting(
    blocks: Sequence[LlamaBlock], waiting: Sequence[bool], device: torch.device
) -> Iterator[LlamaBlock]:
    """`arriving`, told which blocks have to be copied (at least one)."""
    places = _Places(blocks[waiting.index(True)], device)
    visits = (places.fetch(block) for block, waits in zip(blocks, waiting, strict=True) if waits)
    coming = next(visits, None)
    for block, waits in zip(blocks, waiting, strict=True):
        if not waits:
            yield block
            continue
        visit, coming = coming, next(visits, None)  # the next one is on its way while this one computes
        assert visit is not None
        visit.wait()
        yield visit.block


def give_memory(
    others: Sequence[nn.Module], blocks: Sequence[LlamaBlock], device: torch.device, num_resident: int
) -> None:
    """Memory for modules on the meta device: on `device` for all but the blocks from `num_resident` on, which
    get pinned host memory (plain where no CUDA device will read it).
    """
    for module in (*others, *blocks[:num_resident]):
        module.to_empty(device=device)
    pinned = device.type == "cuda"
    for block in blocks[num_resident:]:
        block._apply(lambda t: torch.empty_like(t, device="cpu", pin_memory=pinned))


@dataclass(frozen=True, slots=True)
class _Visit:
    """A block on the device, once it has been copied (None: it has)."""

    block: LlamaBlock
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        """Lets what is launched from here on wait, not the host."""
        if self.copied is not None:
            self.copied.wait()


class _Places:
    def __init__(self, like: LlamaBlock, device: torch.device) -> None:
        self._device = device
        self._blocks = [_empty_copy(like, device) for _ in range(NUM_PLACES)]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._num_fetched = 0

    def fetch(self, block: LlamaBlock) -> _Visit:
        """Start copying a block to where the last but one was, which must have been launched."""
        place = self._blocks[self._num_fetched % NUM_PLACES]
        self._num_fetched += 1
        if self._stream is None:
            _copy(block, place)
            return _Visit(place, None)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            _copy(block, place)
        copied = torch.cuda.Event()
        copied.record(self._stream)
        return _Visit(place, copied)


def _empty_copy(block: LlamaBlock, device: torch.device) -> LlamaBlock:
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device=device), requires_grad=False)
        for p in block.parameters()
    }
    return copy.deepcopy(block, memo)


@torch.no_grad()
def _copy(block: LlamaBlock, place: LlamaBlock) -> None:
    for here, there in zip(place.parameters(), block.parameters(), strict=True):
        here.copy_(there, non_blocking=True)
