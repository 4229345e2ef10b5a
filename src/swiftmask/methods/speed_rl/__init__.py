"""Speed-RL (arXiv 2512.01094): GRPO on quality and speed makes few steps as good as many."""

from swiftmask.methods.speed_rl.config import SpeedRLConfig
from swiftmask.methods.speed_rl.filtering import FilterConfig
from swiftmask.methods.speed_rl.policy import TuningConfig, make_policy
from swiftmask.methods.speed_rl.rounds import Rounds
from swiftmask.methods.speed_rl.scorers import Judge, Prompts, Reward, Scorers
from swiftmask.methods.speed_rl.training import SpeedRLTrainer
from swiftmask.methods.speed_rl.weights import merged, read_policy, write_policy

__all__ = [
    "FilterConfig",
    "Judge",
    "Prompts",
    "Reward",
    "Rounds",
    "Scorers",
    "SpeedRLConfig",
    "SpeedRLTrainer",
    "TuningConfig",
    "make_policy",
    "merged",
    "read_policy",
    "write_policy",
]
