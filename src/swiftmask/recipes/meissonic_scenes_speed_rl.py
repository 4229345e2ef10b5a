"""meissonic-scenes-speed-rl: meissonic-scenes tuned to draw in a third of its steps (Speed-RL, arXiv
2512.01094). Its base is the bundled model, or the one a run of its recipe left.
"""

from dataclasses import replace

from swiftmask.core.protocol import SamplingOptions
from swiftmask.methods.speed_rl import SpeedConfig
from swiftmask.recipes.speed_rl_scenes import STEPS, SceneSpeedRLRecipe, few_steps, first_guesses
from swiftmask.registry import WEIGHTS

_TARGETS = (
    r"transformer\..*(to_v|add_v_proj|to_out\.0|to_add_out|"
    r"norm1(_context)?\.linear\.bias|norm\.linear\.bias).*"
)
"""What attention passes on, and the biases of the modulation: 200,000 parameters, where gradients of
different rounds agree most (docs/log.md).
"""


def recipe() -> SceneSpeedRLRecipe:
    """`swiftmask train meissonic-scenes-speed-rl`: 900 rounds of 64 pictures, about 4 seconds each with
    `torchrun` on two CPU cores, 7 on one (2026-11-22).

    A round says little (docs/log.md), so rounds are many, and all pictures are drawn in the wanted number of
    steps: other numbers would ask for a speed reward, which adds to the noise. The divergence at weight 0.1
    holds the policy where noise would carry it, and allows advantages to tilt it by exp(A / 0.1) still. At
    temperature 0.8, below the base's 0.9, few steps start from better pictures.
    """
    speed_rl = replace(
        few_steps(targets=_TARGETS),
        step_policy=f"fixed:{STEPS}",
        speed=SpeedConfig(weight=0.0),
        beta=0.1,
        sampling=SamplingOptions(temperature=0.8),
    )
    training = replace(
        first_guesses(speed_rl),
        num_steps=900,
        learning_rate=2e-4,
        warmup_steps=20,
        ema_decay=0.995,
        save_every=25,
    )
    return SceneSpeedRLRecipe(
        name="meissonic-scenes-speed-rl",
        base=str(WEIGHTS / "meissonic-scenes"),
        speed_rl=speed_rl,
        training=training,
    )
