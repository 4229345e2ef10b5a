"""mar-emoji-marval-rl: the student of mar-emoji, tuned by the reader that models may be trained against."""

from dataclasses import replace

from swiftmask.recipes import marval_rl
from swiftmask.recipes.emoji import DATA, JUDGE, PAIRS, REWARD, made, reader_entry
from swiftmask.recipes.marval_rl import MarvalRLRecipe


def recipe() -> MarvalRLRecipe:
    """`swiftmask train mar-emoji-marval-rl`, after `mar-emoji-marval`, `emoji-reward` and `emoji-judge`."""
    base = marval_rl.recipe()
    return replace(
        base,
        name="mar-emoji-marval-rl",
        model=made("mar-emoji"),
        student=made("mar-emoji-marval"),
        reward=(reader_entry(REWARD),),
        held_out=(reader_entry(JUDGE),),
        data=DATA,
        source=PAIRS,
        training=replace(base.training, num_steps=200, warmup_steps=20),
    )
