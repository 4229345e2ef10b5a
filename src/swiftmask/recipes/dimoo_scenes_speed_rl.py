"""dimoo-scenes-speed-rl: dimoo-scenes tuned for 5 decode steps instead of 16 (Speed-RL)."""

from swiftmask.recipes.speed_rl import SpeedRLRecipe, scenes_preset


def recipe() -> SpeedRLRecipe:
    """`swiftmask train dimoo-scenes-speed-rl`: 160 rounds of 64 images on two CPU cores; words and codes keep
    their embeddings.

    Not run to its end yet: rates, length and the weight of the speed reward are first guesses.
    """
    return scenes_preset("dimoo-scenes-speed-rl", targets=r"backbone\..*\.blocks\..*")
