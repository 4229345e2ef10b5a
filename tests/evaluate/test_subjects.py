"""What a study asks: prompts that are real pictures' captions, at the model's own size in pixels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from swiftmask.data.scenes import World, render
from swiftmask.evaluate.quality import VARIATIONS, Drawn, RealPictures, Row, Sample, measure, picture_seeds
from swiftmask.evaluate.study import Store, run_study
from swiftmask.evaluate.subjects import OTHER_REAL_SEED, REAL_SEED, Captions, Classes
from swiftmask.rewards.scenes import load_judge, load_reward

CAPTIONS = Captions(world=World(), size=48)
SAMPLE = Sample(num_pictures=24, num_seeds=1, batch_size=10)


def painter(subjects: Captions, asked: list[list[str]]):
    """Draws the scenes whose captions it is asked for; the same pictures again for further seeds."""
    scene_of = {text: index for index, text in enumerate(subjects.asked(0, SAMPLE.num_pictures))}

    def draw(what: list[str], seeds: list[int]) -> Drawn:
        asked.append(what)
        seeds_X = OTHER_REAL_SEED + torch.tensor([scene_of[text] for text in what])
        return Drawn(render(subjects.world.scenes(seeds_X), 48), torch.zeros(len(what), 4).long(), 0.001)

    return draw


def row(subjects: Captions, asked: list[list[str]]) -> Row:
    return Row(
        name="vanilla-4",
        series="vanilla",
        steps=4,
        full_steps=4,
        calls={"backbone": 4},
        flops=1000,
        command="swiftmask evaluate",
        fingerprint="x",
        draw=painter(subjects, asked),
        subjects=subjects,
    )


@pytest.mark.parametrize("percent", [0, 100])
def test_prompts_are_the_captions_of_the_other_real_pictures(percent: int) -> None:
    subjects = Captions(world=World(simple_percent=percent), size=32)
    prompts = subjects.asked(2, 30)
    assert prompts == subjects.asked(2, 40)[:30] != subjects.asked(1, 30)
    pictures = torch.cat(list(subjects.real(OTHER_REAL_SEED, 2, 30)))
    assert pictures.shape == (30, 3, 32, 32)
    others = torch.cat(list(subjects.real(REAL_SEED, 2, 30)))
    assert not torch.equal(pictures, others)
    if percent == 100:  # what the readers were made for without doubt
        counts_B = RealPictures(load_judge(), subjects).reader.read(pictures).count_B
        assert (counts_B == subjects.facts(prompts).count_B).float().mean() > 0.9
    assert len(subjects.varied(2, 30)) == len(set(prompts))


def test_perfect_pictures_score_one_and_lie_at_the_floor() -> None:
    asked: list[list[str]] = []
    real = RealPictures(load_judge(), CAPTIONS, load_reward())
    found, _ = measure(row(CAPTIONS, asked), 0, SAMPLE, real)
    assert found.score == pytest.approx(1.0, abs=0.05)
    assert found.training_reward == pytest.approx(1.0, abs=0.05)
    assert found.fd_scenes == pytest.approx(found.floor, rel=1e-3)
    assert [len(what) for what in asked[:3]] == [10, 10, 4]


def test_diversity_is_that_of_a_prompt_alone() -> None:
    """Every prompt's pictures are the same one, however much prompts differ."""
    asked: list[list[str]] = []
    found, _ = measure(row(CAPTIONS, asked), 0, SAMPLE, RealPictures(load_judge(), CAPTIONS))
    assert found.diversity == pytest.approx(0.0, abs=1e-5)
    assert found.training_reward is None
    varied = [text for what in asked[3:] for text in what]
    assert varied[:VARIATIONS] == [CAPTIONS.asked(0, 24)[0]] * VARIATIONS
    assert len(varied) == VARIATIONS * len(CAPTIONS.varied(0, 24))


def test_measurements_of_prompts_are_kept(tmp_path: Path) -> None:
    store, real = Store(tmp_path, "m"), RealPictures(load_judge(), CAPTIONS)
    (found,) = run_study([row(CAPTIONS, [])], SAMPLE, store, real)
    assert store.read() == [found]
    assert found.diversity is not None
    store.add(replace(found, diversity=None))
    assert "diversity" not in store.path.read_text(), "lines of classes are what they were"


def test_classes_have_no_prompts_to_vary() -> None:
    assert Classes().varied(0, 10) == []
    assert Classes().asked(1, 50)[47:] == [47, 0, 1]
    assert picture_seeds(1, 2) == [1_000_003, 1_000_004]
