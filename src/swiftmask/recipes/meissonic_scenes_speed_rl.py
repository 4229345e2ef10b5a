"""meissonic-scenes-speed-rl: meissonic-scenes tuned to draw in 5 steps what takes it 16 (Speed-RL, arXiv
2512.01094). Its base is the bundled model, or the one a run of its recipe left.
"""

from swiftmask.recipes.speed_rl_scenes import SceneSpeedRLRecipe, few_steps, first_guesses
from swiftmask.registry import WEIGHTS


def recipe() -> SceneSpeedRLRecipe:
    """`swiftmask train meissonic-scenes-speed-rl`: 160 rounds of 64 pictures on two CPU cores; the text
    encoder stays as it is, and what reads the micro-conditions, which never change here
    (`ignore_micro_conditions`).

    No run of it has gained anything yet (docs/log.md): rates, length and the size of rounds are guesses.
    """
    speed_rl = few_steps(targets=r"transformer\.(?!cond_embed\.).*")
    return SceneSpeedRLRecipe(
        name="meissonic-scenes-speed-rl",
        base=str(WEIGHTS / "meissonic-scenes"),
        speed_rl=speed_rl,
        training=first_guesses(speed_rl),
    )
