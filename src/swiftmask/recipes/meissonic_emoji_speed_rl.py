"""meissonic-emoji-speed-rl: meissonic-emoji tuned for a third of its decode steps (Speed-RL)."""

from dataclasses import replace

from swiftmask.recipes.emoji import DATA, JUDGE, REWARD, made, reader_entry
from swiftmask.recipes.meissonic_scenes_speed_rl import TARGETS
from swiftmask.recipes.speed_rl import SpeedRLRecipe, scenes_preset


def recipe() -> SpeedRLRecipe:
    """`swiftmask train meissonic-emoji-speed-rl`, after `meissonic-emoji`, `emoji-reward` and `emoji-judge`.

    Images of a group differ in their steps, and the speed reward prefers the fewer.
    """
    base = scenes_preset("meissonic-emoji-speed-rl", targets=TARGETS)
    return replace(
        base,
        model=made("meissonic-emoji"),
        data=DATA,
        reward=(reader_entry(REWARD),),
        held_out=(reader_entry(JUDGE),),
        steps=None,
        training=replace(base.training, precision="no"),
    )
