"""`swiftmask serve-reward`: which reward it finds, and what it says when it cannot."""

import sys
import threading
from pathlib import Path

import pytest
import torch

from swiftmask.cli import main
from swiftmask.cli.serve_reward import ServeReward
from swiftmask.data.scenes import captions, render, sample_scenes
from swiftmask.rewards.http_client import HttpReward
from swiftmask.serve.listening import ListeningServer

OWN = "NUMBER = 3\ndef score(images_B3HW, prompts):\n    return [float(len(prompt)) for prompt in prompts]\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a reward of one's own in `own_reward.py`."""
    (tmp_path / "own_reward.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "own_reward", raising=False)
    return tmp_path


def score(command: ServeReward, images_B3HW: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    with command.server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        client = HttpReward(url=f"http://127.0.0.1:{server.server_port}", num_attempts=1)
        try:
            assert client.health() == command.reward
            return client(images_B3HW, prompts)
        finally:
            server.shutdown()
            thread.join()


def test_a_function_of_ones_own(here: Path) -> None:
    scores_B = score(ServeReward(reward="own_reward:score", port=0), torch.rand(2, 3, 4, 4), ["a", "bcd"])
    assert scores_B.tolist() == [1.0, 3.0]


def test_a_bundled_reader() -> None:
    scenes = sample_scenes(range(2**41, 2**41 + 4))
    texts = captions(scenes)
    images_B3HW = render(scenes)
    right_B = score(ServeReward(reward="scenes-judge", port=0), images_B3HW, texts)
    wrong_B = score(ServeReward(reward="scenes-reward", port=0), images_B3HW, texts[1:] + texts[:1])
    assert right_B.mean() > 0.9 > wrong_B.mean()


@pytest.mark.parametrize(
    ("name", "arguments", "load", "expected"),
    [
        ("hps", ["--weights", "w"], "hps.load_hps", ("w", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K")),
        ("hps", ["--weights", "w", "--clip", "c"], "hps.load_hps", ("w", "c")),
        ("aesthetic", ["--weights", "w", "--clip", "c"], "aesthetic.load_aesthetic", ("w", "c")),
        ("pickscore", [], "clip.load_pick_score", ("yuvalkirstain/PickScore_v1", None)),
        ("clip", ["--weights", "w"], "clip.load_clip_score", ("w", None)),
    ],
)
def test_rewards_by_name(
    name: str,
    arguments: list[str],
    load: str,
    expected: tuple[str, str | None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = []

    def loader(weights: str, **options: object) -> object:
        asked.append((weights, options.get("processor", options.get("clip"))))
        assert options["dtype"] == torch.bfloat16
        return lambda images_B3HW, prompts: [0.0]

    def interrupt(server: ListeningServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"swiftmask.rewards.{load}", loader)
    monkeypatch.setattr(ListeningServer, "serve_forever", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["serve-reward", name, *arguments, "--device", "cpu", "--dtype", "bfloat16", "--port", "0"])
    assert stop.value.code == 130
    assert asked == [expected]
    said = capsys.readouterr()
    assert said.out.startswith(f"{name} at http://127.0.0.1:")
    assert said.err == f"{name} on cpu\n\nswiftmask: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["hpsv2"], "unknown reward 'hpsv2': did you mean hps"),
        (["pickscore", "--weights", ""], "--weights is empty: name a file or a folder"),
        (["pickscore", "--clip", ""], "--clip is empty: name a file or a folder"),
        (["pickscore="], "no path behind pickscore="),
        (["hps"], "hps needs its weights, as in hps=PATH"),
        (["hps", "--weights", "nowhere.pt"], "no HPSv2.1 weights at nowhere.pt"),
        (["aesthetic", "--weights", "nowhere.pth"], "no aesthetic predictor at nowhere.pth"),
        (["clip", "--weights", "./nowhere"], "no such CLIP folder: ./nowhere"),
        (["scenes-judge", "--clip", "x"], "scenes-judge goes with no CLIP"),
        (["own_reward:nothing"], "cannot import the reward 'own_reward:nothing'"),
        (["own_reward:NUMBER"], "own_reward:NUMBER is no function, but int"),
        (["no_such_module:score"], "No module named 'no_such_module'"),
        ([":score"], "cannot import the reward ':score'"),
        (["own_reward:score", "--device", "toaster"], "unknown device 'toaster'"),
        (["pickscore", "--dtype", "float12"], "unknown dtype 'float12'"),
        (
            ["own_reward:score", "--port", "70000"],
            "--port must be a whole number between 0 and 65_535, got 70000",
        ),
        (["own_reward:score", "--max-images", "0"], "--max-images must be a whole number between 1 and"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], complaint: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve-reward", *arguments])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert complaint in said
    assert len(said.strip().splitlines()) == 1, said
