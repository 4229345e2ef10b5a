"""mar-emoji-marval: the student of mar-emoji."""

from dataclasses import replace

from swiftmask.recipes import marval
from swiftmask.recipes.emoji import DATA, PAIRS, made
from swiftmask.recipes.marval import MarvalRecipe


def recipe() -> MarvalRecipe:
    """`swiftmask train mar-emoji-marval`, after `mar-emoji`: a third of the updates of mar-scenes-marval, of
    half as many images.
    """
    base = marval.recipe()
    training = replace(base.training, num_steps=1000, batch_size=32, warmup_steps=50, ema_decay=0.995)
    return replace(
        base, name="mar-emoji-marval", model=made("mar-emoji"), data=DATA, source=PAIRS, training=training
    )
