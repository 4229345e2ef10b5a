"""Training a shortcut: each update rolls it forward through up to `max_rollout` of its own predictions, as
inference will, and matches the teacher's features at the positions still masked after each step.

MIGM-Shortcut (arXiv 2602.23996) trains single steps on stored features and one step count. An optional second
term matches the guided token distributions, which is what sampling reads. Both networks are trained by the
same code: what `fresh` returns goes to the network as it is. Upstream's loss for Lumina-DiMOO covers prompt
and decided codes too; here only rows that are still sampled from count. The batches are those of rounds.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swiftmask.core.protocol import MaskedGenerator
from swiftmask.core.tokens import CategoricalTokens, gather_rows
from swiftmask.methods.shortcut.features import AnyShortcut
from swiftmask.methods.shortcut.rounds import Link, RolloutBatch, RoundsConfig
from swiftmask.training.frozen import Outside


class ShortcutTrainer(nn.Module):
    """The shortcut with its roll-out loss as `forward`.

    Args:
        teacher: the one of the rounds. Its head is needed for the token term; its weights are not trained,
            not saved and not copied with this module.
        rounds: say how much the token term weighs.
    """

    def __init__(self, shortcut: AnyShortcut, teacher: MaskedGenerator, rounds: RoundsConfig) -> None:
        super().__init__()
        self.shortcut = shortcut
        self._teacher = Outside(teacher)
        self._token_weight = rounds.of(teacher).token_weight or 0.0

    def forward(self, batch: RolloutBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the chain of feature (and token) errors at masked positions.

        Metrics: `mse` against `copy_mse`, the same for the features the chain started from (the baseline a
        shortcut must beat); `cosine` of the predictions.
        """
        features_GBTD = batch.start_GBTD.float()
        loss = features_GBTD.new_zeros(())
        sums = {
            name: features_GBTD.new_zeros(()) for name in ("mse", "copy_mse", "cosine", "token_divergence")
        }
        for link in batch.links:
            features_GBTD = self._advance(features_GBTD, link)
            predicted, target, start = (
                gather_rows(f.float(), link.rows_BM)
                for f in (features_GBTD, link.target_GBTD, batch.start_GBTD)
            )
            mse = F.mse_loss(predicted, target)
            divergence = self._divergence(features_GBTD, link)
            loss = loss + mse + self._token_weight * divergence
            sums["mse"] = sums["mse"] + mse
            sums["copy_mse"] = sums["copy_mse"] + F.mse_loss(start, target)
            sums["cosine"] = sums["cosine"] + F.cosine_similarity(predicted, target, dim=-1).mean()
            sums["token_divergence"] = sums["token_divergence"] + divergence
        count = len(batch.links)
        return loss / count, {name: value / count for name, value in sums.items()}

    def _advance(self, features_GBTD: Tensor, link: Link) -> Tensor:
        num_branches, batch = features_GBTD.shape[:2]
        ratio_X = torch.full((num_branches * batch,), link.ratio, device=features_GBTD.device)
        advanced_XTD = self.shortcut(features_GBTD.flatten(0, 1), link.fresh, ratio_X)
        return advanced_XTD.float().unflatten(0, (num_branches, batch))

    def _divergence(self, features_GBTD: Tensor, link: Link) -> Tensor:
        if self._token_weight == 0.0:
            return features_GBTD.new_zeros(())
        predicted, target = (self._log_probs(f, link) for f in (features_GBTD, link.target_GBTD))
        total = F.kl_div(predicted, target, log_target=True, reduction="sum")
        return total / predicted[..., 0].numel()

    def _log_probs(self, features_GBTD: Tensor, link: Link) -> Tensor:
        teacher = self._teacher.value
        features_GBTD = features_GBTD.to(link.target_GBTD.dtype)  # the teacher's
        distribution = teacher.tokens(features_GBTD, link.positions_BM, link.guidance)
        assert isinstance(distribution, CategoricalTokens)
        return (distribution.logits_BMV.float() / link.temperature).log_softmax(-1)
