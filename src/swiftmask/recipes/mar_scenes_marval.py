"""mar-scenes-marval: the student of the bundled mar-scenes."""

from dataclasses import replace

from swiftmask.recipes import marval
from swiftmask.recipes.marval import MarvalRecipe


def recipe() -> MarvalRecipe:
    """`swiftmask train mar-scenes-marval`: an hour on one CPU core; half of the updates are the auxiliary
    network's. Measured quality in docs/marval.md, with the ablations behind masks and timesteps.

    Masks are those that MAR itself was trained with. Guidance is what the teacher's, which grows to 2 over a
    decode, is on average.
    """
    return replace(marval.recipe(), name="mar-scenes-marval", model="mar-scenes", data="scenes:classes")
