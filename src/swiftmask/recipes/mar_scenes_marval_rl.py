"""mar-scenes-marval-rl: the student of the bundled mar-scenes, tuned by the training reader of Scenes."""

from dataclasses import replace

from swiftmask.recipes import marval_rl
from swiftmask.recipes.marval_rl import MarvalRLRecipe


def recipe() -> MarvalRLRecipe:
    """`swiftmask train mar-scenes-marval-rl`: 10 minutes on one CPU core; half of the updates are the
    auxiliary network's. Measured quality in docs/marval.md; nothing here has been swept.
    """
    return replace(
        marval_rl.recipe(),
        name="mar-scenes-marval-rl",
        model="mar-scenes",
        student="mar-scenes-marval",
        reward=("scenes-reward",),
        held_out=("scenes-judge",),
        data="scenes:classes",
    )
