"""The rehearsal itself: each kind of mistake it is there for is caught, and sound work is not blamed."""

from collections.abc import Callable

import pytest
import torch
from fake_gpu import DEVICE, Rehearsal
from torch import Tensor, nn


def device_tensor(*values: float) -> Tensor:
    return torch.tensor(values).to(DEVICE)


MISMATCHES: dict[str, Callable[[Tensor], object]] = {
    "a batch left on the host": lambda x: x + torch.ones(3),
    "a layer left on the host": lambda x: nn.Linear(3, 2)(x),
    "a lookup in a table of the host": lambda x: torch.arange(9)[x.long()],
    "a generator of the host": lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    "a loss with a target of the host": lambda x: nn.functional.mse_loss(x, torch.zeros(3)),
    "a result written into a tensor of the device": lambda x: torch.stack([x, torch.zeros(3)]),
}


@pytest.mark.parametrize("mistake", MISMATCHES)
def test_what_a_gpu_refuses_is_refused(mistake: str, gpu: Rehearsal) -> None:
    with pytest.raises(RuntimeError, match="expected"):
        MISMATCHES[mistake](device_tensor(1, 2, 0))


WAITS: dict[str, tuple[str, Callable[[Tensor], object]]] = {
    "item": ("read", lambda x: x.sum().item()),
    "tolist": ("read", lambda x: x.tolist()),
    "a number": ("read", lambda x: float(x[0])),
    "a condition": ("read", lambda x: bool((x > 1).all())),
    "cpu": ("read", lambda x: x.cpu()),
    "nonzero": ("read", lambda x: x.nonzero()),
    "reading by a mask": ("read", lambda x: x[x > 1]),
    "writing by a mask": ("read", lambda x: x.index_put_((x > 1,), x.new_zeros(()))),
    "unique": ("read", lambda x: x.unique()),
    "repeats that are not counted": ("read", lambda x: x.repeat_interleave(x.long())),
    "a list made a tensor": (
        "copy to the device",
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
    ),
    "to": ("copy to the device", lambda x: torch.ones(3).to(x.device)),
    "copy_": ("copy to the device", lambda x: x.copy_(torch.ones(3))),
    "indices of the host": ("copy to the device", lambda x: x[torch.tensor([0, 2])]),
    "a scalar of the host": ("scalar from the host", lambda x: x * torch.tensor(2.0)),
}


@pytest.mark.parametrize("mistake", WAITS)
def test_what_waits_is_seen(mistake: str, gpu: Rehearsal) -> None:
    kind, work = WAITS[mistake]
    x = device_tensor(1, 2, 0)
    with gpu.part() as part:
        work(x)
    assert kind in [event.kind for event in part.events]


def test_sound_work_waits_for_nothing_and_its_kernels_are_counted(gpu: Rehearsal) -> None:
    x = device_tensor(1, 2, 0)
    with gpu.part() as part:
        y = x[:2].view(1, 2).expand(3, 2) * 2.0  # views and a product
        y = torch.where(y > 1, y, 0.5)
        y.topk(1, dim=1).indices.gather(1, torch.zeros(3, 1, dtype=torch.int64, device=DEVICE))
    assert part.events == []
    assert part.num_kernels == 7, part.kernels  # the 0.5 of `where` is filled in by one of its own


def test_attention_is_one_kernel(gpu: Rehearsal) -> None:
    query = torch.randn(1, 2, 5, 8, device=DEVICE)
    with gpu.part() as part:
        nn.functional.scaled_dot_product_attention(query, query, query)
    assert part.num_kernels == 1, part.kernels


def test_an_update_gives_the_numbers_of_the_host(gpu: Rehearsal) -> None:
    """Autograd, in-place writes through views, and an optimizer."""

    def update(device: torch.device) -> Tensor:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 1)).to(device)
        x = torch.arange(6.0).view(2, 3).to(device)
        x[:, 1].mul_(0.5)
        layer(x).square().mean().backward()
        torch.optim.AdamW(layer.parameters(), lr=0.1).step()
        return torch.cat([p.detach().flatten() for p in layer.parameters()]).cpu()

    torch.testing.assert_close(update(DEVICE), update(torch.device("cpu")))


def test_a_module_changes_its_dtype_on_the_device(gpu: Rehearsal) -> None:
    layer = nn.Linear(3, 2).to(DEVICE).bfloat16()
    assert layer(device_tensor(1, 2, 0).bfloat16()).cpu().dtype == torch.bfloat16


def test_equal_parts_are_told_apart(gpu: Rehearsal) -> None:
    with gpu.part() as outer:
        with gpu.part():
            pass
        device_tensor(1).neg()
    assert outer.num_kernels == 1


def test_without_values_shapes_and_dtypes_are_known() -> None:
    with Rehearsal(values=False) as gpu:
        layer = nn.Linear(2**16, 2**16, device=DEVICE, dtype=torch.bfloat16)
        y = layer(torch.zeros(2, 2**16, dtype=torch.bfloat16, device=DEVICE))
        assert (y.shape, y.dtype, y.device) == ((2, 2**16), torch.bfloat16, DEVICE)
        assert [dtype for _, dtype, _ in gpu.whole.products] == [torch.bfloat16]


def test_the_device_is_gone_afterwards(gpu: Rehearsal) -> None:
    assert torch.accelerator.is_available()
    x = device_tensor(1, 2, 0)
    gpu.__exit__(None, None, None)
    try:
        assert not torch.accelerator.is_available()
        with pytest.raises(RuntimeError, match="no rehearsal"):
            x.sum()
    finally:
        gpu.__enter__()
