"""The shortcut in the decode loop: full steps run the backbone, the others move the last features forward.

MIGM-Shortcut (arXiv 2602.23996): step i sees the features of step i - 1, the tokens decided there, and the
share of the canvas still masked. Shortcut steps chain. All guidance branches go through in one batched
call.
"""

import torch
from torch import nn

from swiftmask.core.compiled import RepeatedBlocks
from swiftmask.core.protocol import Condition, MaskedGenerator
from swiftmask.core.types import Canvas, Features, Record, Step
from swiftmask.methods.shortcut.network import Shortcut
from swiftmask.methods.shortcut.rotary import RotaryShortcut

AnyShortcut = Shortcut | RotaryShortcut
"""The networks there are; which one reads a base's fresh tokens follows from the network."""


class ShortcutFeatures(nn.Module):
    """The feature function of a base model with a shortcut. Both are submodules: `to` moves them together.

    Errors: ValueError if the widths of the two differ, or the base has no rotary positions for a shortcut
    that reads them.
    """

    name = "shortcut"

    def __init__(self, model: MaskedGenerator, shortcut: AnyShortcut) -> None:
        super().__init__()
        if shortcut.config.width != model.spec.width:
            raise ValueError(
                f"this shortcut is for features of width {shortcut.config.width}, but {model.spec.name} has "
                f"width {model.spec.width}: use a shortcut trained for this base model"
            )
        if isinstance(shortcut, RotaryShortcut) and not hasattr(model, "fresh_tokens"):
            raise ValueError(
                "this shortcut is for a base with rotary positions (lumina_dimoo), "
                f"{model.spec.name} has none: use a shortcut trained for this base model"
            )
        self.model = model
        self.shortcut = shortcut

    @property
    def settings(self) -> tuple[object, ...]:
        """The network's: number of heads and the like cannot be read off its weights."""
        return (self.shortcut.config,)

    def repeated_blocks(self) -> RepeatedBlocks:
        """The shortcut's own; the model has those of the backbone."""
        return RepeatedBlocks(tuple(self.shortcut.blocks))

    def forward(self, canvas: Canvas, condition: Condition, step: Step, previous: Record | None) -> Features:
        if step.full or previous is None:
            return Features(self.model.features(canvas, condition))
        old_GBTD = previous.features.features_GBTD
        num_branches, batch = old_GBTD.shape[:2]
        fresh = self.shortcut.fresh(self.model, condition, previous.decision)
        ratio = step.num_masked_before / self.model.spec.num_tokens
        ratio_X = torch.full((num_branches * batch,), ratio, dtype=torch.float32, device=old_GBTD.device)
        new_XTD = self.shortcut(old_GBTD.flatten(0, 1), fresh, ratio_X)
        return Features(new_XTD.unflatten(0, (num_branches, batch)))
