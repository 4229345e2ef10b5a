"""Rewards by name: how a setting is read, and what is scored by what."""

import sys
from pathlib import Path

import pytest
import torch

from swiftmask.data.scenes import CLASS_NAMES, NUM_CLASSES, class_scenes, render
from swiftmask.rewards import named
from swiftmask.rewards.named import Entry, class_prompts, load, load_differentiable, load_for_classes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pickscore", Entry("pickscore")),
        ("pickscore:2", Entry("pickscore", weight=2.0)),
        ("hps=HPS_v2.1.pt:0.5", Entry("hps", "HPS_v2.1.pt", 0.5)),
        ("clip=/data/a:b/clip", Entry("clip", "/data/a:b/clip")),
        ("http://127.0.0.1:8765", Entry("http://127.0.0.1:8765")),
        ("http://127.0.0.1:8765:0.5", Entry("http://127.0.0.1:8765", weight=0.5)),
        ("https://host/path:3", Entry("https://host/path", weight=3.0)),
        ("my_reward:score", Entry("my_reward:score")),
        ("my_reward:score:1e-1", Entry("my_reward:score", weight=0.1)),
    ],
)
def test_a_setting_names_a_reward_its_weights_and_its_weight(text: str, expected: Entry) -> None:
    assert Entry.parsed(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a reward"),
        ("pick-score", "unknown reward 'pick-score': did you mean pickscore"),
        ("beauty", "unknown reward 'beauty': there is pickscore, hps"),
        ("pickscore:0", "the weight of pickscore must be a number above 0"),
    ],
)
def test_what_names_no_reward_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Entry.parsed(text)


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lengths.py").write_text(
        "def score(images, prompts):\n    return [len(p) for p in prompts]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "lengths", raising=False)
    own = Entry.parsed("lengths:score")
    images_B3HW = torch.rand(2, 3, 4, 4)
    assert load(own)(images_B3HW, ["a", "bcd"]) == [1, 3]
    expected = [len(prompt) for prompt in class_prompts(["frog", "ox"])]
    assert load_for_classes(own, ["frog, Rana", "ox"])(images_B3HW, [0, 1]) == expected
    with pytest.raises(ValueError, match="lengths:score has no gradient"):
        load_differentiable(own, ["frog", "ox"])
    with pytest.raises(ValueError, match="takes no weights"):
        load(Entry("lengths:score", "x"))


@pytest.mark.parametrize("name", ["scenes-reward", "scenes-judge"])
@pytest.mark.parametrize("wrong", [0, 9])
def test_classes_of_scenes_are_scored_by_their_facts(name: str, wrong: int) -> None:
    score = load_for_classes(Entry(name), CLASS_NAMES)
    labels_B = torch.tensor([0, 13, 29])
    images_B3HW = render(class_scenes(labels_B, torch.arange(3)))
    scores_B = score(images_B3HW, ((labels_B + wrong) % NUM_CLASSES).tolist())
    assert (scores_B == 1).all() if wrong == 0 else (scores_B < 0.5).all()
    with pytest.raises(ValueError, match="reads the classes of Scenes"):
        load_for_classes(Entry(name), ["frog"])


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hps needs its weights, as in hps=PATH"):
        load(Entry("hps"))
    with pytest.raises(FileNotFoundError, match="no aesthetic predictor at"):
        load(Entry("aesthetic", str(tmp_path)))
    with pytest.raises(ValueError, match="clip reads prompts, and the classes of this model have no names"):
        load_for_classes(Entry("clip"), [])


def test_the_clip_beside_the_weights_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "swiftmask.rewards.hps.load_hps", lambda weights, *, processor, dtype: asked.append(processor)
    )
    load(Entry("hps", str(tmp_path)))
    (tmp_path / "clip").mkdir()
    load(Entry("hps", str(tmp_path)))
    load(Entry("hps", str(tmp_path)), clip="given")
    assert asked == ["laion/CLIP-ViT-H-14-laion2B-s32B-b79K", str(tmp_path / "clip"), "given"]
    scenes = {"scenes-reward", "scenes-judge"}
    assert set(named.NAMES) == {"pickscore", "hps", "clip", "aesthetic", "reader"} | scenes
