"""meissonic-scenes-speed-rl: meissonic-scenes tuned for a third of its decode steps (Speed-RL)."""

from dataclasses import replace

from swiftmask.core.protocol import SamplingOptions
from swiftmask.recipes.speed_rl import SpeedRLRecipe, scenes_preset

TARGETS = (
    r"transformer\..*(to_v|add_v_proj|to_out\.0|to_add_out|"
    r"norm1(_context)?\.linear\.bias|norm\.linear\.bias).*"
)
"""What attention passes on, and the biases of the modulation: 200,000 parameters, where gradients of
different rounds agree most (docs/log.md).
"""


def recipe() -> SpeedRLRecipe:
    """`swiftmask train meissonic-scenes-speed-rl`: 900 rounds of 64 images, about 4 seconds each with
    `torchrun` on two CPU cores, 7 on one (2026-11-22).

    A round says little (docs/log.md), so rounds are many, and all images take the wanted number of steps:
    other numbers would need a speed reward, which adds to the noise. The divergence at weight 0.1 holds the
    policy where noise would carry it, and still allows advantages to tilt it by exp(A / 0.1). At temperature
    0.8, below the base's 0.9, few steps start from better images.
    """
    base = scenes_preset("meissonic-scenes-speed-rl", targets=TARGETS)
    speed_rl = replace(
        base.speed_rl,
        step_counts=(5,),
        speed_weight=0.0,
        beta=0.1,
        sampling=SamplingOptions(temperature=0.8),
    )
    training = replace(
        base.training,
        num_steps=900,
        learning_rate=2e-4,
        warmup_steps=20,
        ema_decay=0.995,
        save_every=25,
    )
    return replace(base, speed_rl=speed_rl, training=training)
