"""The reward: the reader of Scenes that reinforcement learning may train against."""

from swiftmask.recipes.scenes_readers import ReaderRecipe, reader_recipe
from swiftmask.rewards.scenes_networks import ReaderConfig


def recipe() -> ReaderRecipe:
    """`swiftmask train scenes-reward`: 12 minutes on half of two CPU cores; accuracies in docs/scenes.md."""
    network = ReaderConfig(network="residual", width=48)
    return reader_recipe("scenes-reward", network, seed=23, num_steps=2500)
