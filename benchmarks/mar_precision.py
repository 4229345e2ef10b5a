"""mar-scenes in bfloat16 against float32, from timestep 999, where rounding is multiplied most.

    python benchmarks/mar_precision.py --images 48

The same classes and seeds in both precisions: the judge's score of each, and how far the images are apart
(mean absolute difference of pixels in [0, 1]).
"""

import argparse
from dataclasses import replace

import torch
from torch import Tensor

import swiftmask
from swiftmask.core.protocol import SamplingOptions
from swiftmask.data.scenes import NUM_CLASSES
from swiftmask.rewards.scenes import class_reward, load_judge


def images(dtype: str, labels: list[int], noisiest: int) -> Tensor:
    """Images [B, 3, H, W] in float32 from a hundred ancestral steps a token."""
    model = swiftmask.load("mar-scenes", dtype=dtype, device="cpu")
    sampling = SamplingOptions(denoising_steps=100, sampler="ancestral", noisiest_timestep=noisiest)
    drawn = replace(model, sampling=sampling).generate(labels, output_type="pt").images
    assert isinstance(drawn, Tensor)
    return drawn.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--noisiest", type=int, default=999)
    chosen = parser.parse_args()
    labels = [index % NUM_CLASSES for index in range(chosen.images)]
    judge = class_reward(load_judge())
    exact, low = (images(dtype, labels, chosen.noisiest) for dtype in ("float32", "bfloat16"))
    for name, drawn in (("float32", exact), ("bfloat16", low)):
        print(f"{name}: judge {judge(drawn, torch.tensor(labels)).mean():.3f}")
    print(f"difference {(exact - low).abs().mean():.4f}, N = {chosen.images}, from {chosen.noisiest}")


if __name__ == "__main__":
    main()
