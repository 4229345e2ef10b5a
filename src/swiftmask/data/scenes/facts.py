"""What a caption or a class states about an image, and the exact check of it on generating parameters.

Stated objects are matched to the image's objects by the permutation under which most facts hold: captions
do not say which slot an object came from, and a reader of pixels does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import permutations

import torch
from torch import Tensor

from swiftmask.data.scenes.world import MAX_OBJECTS, Scenes, class_attributes, relation

FACT_KINDS = ("count", "shape", "colour", "size", "relation", "pattern", "background")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is stated about `B` images; -1 means not stated. `relation_B` is from stated object 0 to 1."""

    count_B: Tensor
    shape_BO: Tensor
    colour_BO: Tensor
    size_BO: Tensor
    relation_B: Tensor
    pattern_B: Tensor
    background_B: Tensor

    def __len__(self) -> int:
        return self.count_B.shape[0]

    def __getitem__(self, index: slice | Tensor) -> Facts:
        return Facts(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> Facts:
        return Facts(*(getattr(self, field.name).to(device) for field in fields(self)))


def concat_facts(parts: Sequence[Facts]) -> Facts:
    """One batch out of several."""
    return Facts(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(Facts)))


def caption_facts(scenes: Scenes) -> Facts:
    """Everything that the full caption of each scene states."""
    dx_B = scenes.x_BO[:, 1] - scenes.x_BO[:, 0]
    dy_B = scenes.y_BO[:, 1] - scenes.y_BO[:, 0]
    return Facts(
        count_B=scenes.count_B,
        shape_BO=scenes.shape_BO,
        colour_BO=scenes.colour_BO,
        size_BO=scenes.size_BO,
        relation_B=torch.where(scenes.count_B == 2, relation(dx_B, dy_B), -1),
        pattern_B=scenes.pattern_B,
        background_B=scenes.background_B,
    )


def class_facts(labels_B: Tensor) -> Facts:
    """A class states exactly one object, its shape and its colour."""
    unstated_B = torch.full_like(labels_B, -1, dtype=torch.long)
    unstated_BO = unstated_B[:, None].expand(-1, MAX_OBJECTS)
    shape_BO, colour_BO = unstated_BO.clone(), unstated_BO.clone()
    shape_BO[:, 0], colour_BO[:, 0] = class_attributes(labels_B).unbind(1)
    return Facts(
        count_B=torch.ones_like(unstated_B),
        shape_BO=shape_BO,
        colour_BO=colour_BO,
        size_BO=unstated_BO,
        relation_B=unstated_B,
        pattern_B=unstated_B,
        background_B=unstated_B,
    )


def check(facts: Facts, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """`num_true_B, num_stated_B`: how many stated facts hold in each scene, and how many are stated."""
    num_true_BK, num_stated_BK = check_kinds(facts, scenes)
    return num_true_BK.sum(dim=1), num_stated_BK.sum(dim=1)


def check_kinds(facts: Facts, scenes: Scenes) -> tuple[Tensor, Tensor]:
    """`num_true_BK, num_stated_BK`: the same of each of the `FACT_KINDS`. Where several matches of
    the objects are equally good, the first counts.
    """
    if len(facts) != len(scenes):
        raise ValueError(f"one set of facts per scene: got {len(facts)} facts, {len(scenes)} scenes")
    orders = torch.tensor(list(permutations(range(MAX_OBJECTS))), device=scenes.count_B.device)
    about_objects_PBK = torch.stack([_true_about_objects(facts, scenes, order_O) for order_O in orders])
    best_1B1 = about_objects_PBK.sum(dim=2).argmax(dim=0)[None, :, None]
    best_BK = about_objects_PBK.gather(0, best_1B1.expand_as(about_objects_PBK[:1]))[0]
    shape_B, colour_B, size_B, relation_B = best_BK.unbind(1)
    whole = ((facts.count_B, scenes.count_B), (facts.pattern_B, scenes.pattern_B))
    whole = (*whole, (facts.background_B, scenes.background_B))
    count_B, pattern_B, background_B = (_holds(stated_B, shown_B).long() for stated_B, shown_B in whole)
    num_true = (count_B, shape_B, colour_B, size_B, relation_B, pattern_B, background_B)
    stated = (
        facts.count_B[:, None],
        facts.shape_BO,
        facts.colour_BO,
        facts.size_BO,
        facts.relation_B[:, None],
        facts.pattern_B[:, None],
        facts.background_B[:, None],
    )
    num_stated = [(values >= 0).sum(dim=1) for values in stated]
    return torch.stack(num_true, dim=1), torch.stack(num_stated, dim=1)


def _holds(stated: Tensor, shown: Tensor) -> Tensor:
    return (stated >= 0) & (stated == shown)


def _true_about_objects(facts: Facts, scenes: Scenes, order_O: Tensor) -> Tensor:
    """Facts that hold when stated object `o` is the scene's object `order_O[o]`: [B, 4], shapes, colours,
    sizes and the relation.
    """
    pairs = (
        (facts.shape_BO, scenes.shape_BO),
        (facts.colour_BO, scenes.colour_BO),
        (facts.size_BO, scenes.size_BO),
    )
    same = [_holds(stated_BO, shown_BO[:, order_O]).sum(dim=1) for stated_BO, shown_BO in pairs]
    x_BO, y_BO = scenes.x_BO[:, order_O], scenes.y_BO[:, order_O]
    shown_B = relation(x_BO[:, 1] - x_BO[:, 0], y_BO[:, 1] - y_BO[:, 0])
    both_B = (scenes.shape_BO[:, order_O[:2]] >= 0).all(dim=1)
    return torch.stack([*same, (_holds(facts.relation_B, shown_B) & both_B).long()], dim=1)
