"""Which checkpoint of a run is kept as its best, also by a run that was killed and goes on."""

import json
import math
from pathlib import Path

import pytest
import torch

from swiftmask.methods.speed_rl.scorers import Judge, Prompts
from swiftmask.recipes.held_out import LOG_NAME, best_of, keep_best, mean_scores, spread


def write(folder: Path, facts: dict) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "weights").write_text(str(facts["checkpoint"]["step"]))


@pytest.mark.parametrize(
    ("name", "values", "bests"),
    [
        ("loss", [3.0, 2.0, 2.5, math.nan, 1.0], [1, 2, 2, 2, 5]),
        ("clip", [0.1, 0.3, 0.3, math.inf, 0.2], [1, 2, 2, 2, 2]),
        ("clip", [math.nan, 0.2, 0.1, 0.3, 0.3], [None, 2, 2, 4, 4]),
    ],
)
def test_the_lowest_loss_or_the_highest_score_is_kept(
    name: str, values: list[float], bests: list[int | None], tmp_path: Path
) -> None:
    """The second quantity, which says the opposite, decides nothing."""
    for step, (value, best) in enumerate(zip(values, bests, strict=True), start=1):
        keep_best(tmp_path, step, {name: value, "other": -value}, write)
        found = best_of(tmp_path)
        if best is None:
            assert found is None
        else:
            assert (tmp_path / "best" / "weights").read_text() == str(best)
            assert found == (tmp_path / "best", f"step {best}, {name} {values[best - 1]:.4g}")
    lines = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert [line[name] for line in lines] == [x if math.isfinite(x) else None for x in values]


def test_a_run_that_goes_on_keeps_the_best_of_before_and_makes_later_lines_again(tmp_path: Path) -> None:
    for step, loss in ((2, 1.0), (4, 2.0), (6, 0.5)):
        keep_best(tmp_path, step, {"loss": loss}, write)
    keep_best(tmp_path, 4, {"loss": 2.0}, write)  # the checkpoint of step 2 was the last that was written
    lines = [json.loads(line) for line in (tmp_path / LOG_NAME).read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 4, "loss": 2.0}]
    keep_best(tmp_path, 6, {"loss": 0.5}, write)
    assert (tmp_path / "best" / "weights").read_text() == "6"


def test_nothing_measured_leaves_no_file(tmp_path: Path) -> None:
    keep_best(tmp_path, 1, {}, write)
    assert not list(tmp_path.iterdir())
    assert best_of(tmp_path) is None


def test_mean_scores_are_over_the_images_that_a_scorer_applies_to() -> None:
    def level(images, prompts):
        return [
            None if prompt == "none" else float(image.mean())
            for image, prompt in zip(images, prompts, strict=True)
        ]

    images = torch.tensor([0.0, 0.25, 0.75]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    parts = [(images[:2], Prompts(["none", "a"])), (images[2:], Prompts(["b"]))]
    nothing = Judge("nothing", lambda images, prompts: [None] * len(images))
    means = mean_scores([Judge("level", level), nothing], parts)
    assert means["level"] == 0.5
    assert math.isnan(means["nothing"])
    assert spread(3, 7) == [0, 2, 4]
    assert spread(9, 2) == [0, 1]
