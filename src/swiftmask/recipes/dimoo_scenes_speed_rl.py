"""dimoo-scenes-speed-rl: dimoo-scenes tuned to draw in 5 steps what takes it 16 (Speed-RL, arXiv
2512.01094). Its base is the bundled model, or the one a run of its recipe left.
"""

from swiftmask.recipes.speed_rl_scenes import SceneSpeedRLRecipe, few_steps, first_guesses
from swiftmask.registry import WEIGHTS


def recipe() -> SceneSpeedRLRecipe:
    """`swiftmask train dimoo-scenes-speed-rl`: 160 rounds of 64 pictures on two CPU cores; words and codes
    keep their embeddings.

    Not run to its end yet: rates, length and the weight of the speed reward are first guesses.
    """
    speed_rl = few_steps(targets=r"backbone\..*\.blocks\..*")
    return SceneSpeedRLRecipe(
        name="dimoo-scenes-speed-rl",
        base=str(WEIGHTS / "dimoo-scenes"),
        speed_rl=speed_rl,
        training=first_guesses(speed_rl),
    )
