"""The judge: the reader of Scenes that evaluation reports, never trained against."""

from swiftmask.recipes.scenes_readers import ReaderRecipe, reader_recipe
from swiftmask.rewards.scenes_networks import ReaderConfig


def recipe() -> ReaderRecipe:
    """`swiftmask train scenes-judge`: 16 minutes on half of two CPU cores; accuracies in docs/scenes.md."""
    network = ReaderConfig(network="hybrid", width=64)
    return reader_recipe("scenes-judge", network, seed=11, num_steps=2000)
