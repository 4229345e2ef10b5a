"""The five commands of docs/train_your_own.md, on a folder of 150 images in three classes with captions."""

import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from swiftmask.cli import main

_ROOT = Path(__file__).parents[1]
_SMALLER = {
    "train tokenizer": "size=tiny num_codes=32 training.num_steps=12 training.batch_size=8",
    "train maskgit": "size=tiny training.num_steps=8 training.batch_size=8 samples.steps=2",
    "train shortcut": "training.num_steps=4 training.batch_size=4 rounds.images_per_round=4 "
    "rounds.images_per_update=2 rounds.updates_per_round=2 rounds.step_counts=4,6",
    "bench": "--scorer scenes --images 12 --seeds 1 --steps 2 4 --shortcut runs/shortcut/model "
    "--budgets 4:2 --baselines reuse --unguided 4 --shown 1",
    "tune": "--scorer scenes --images 12 --search-images 12 --drift-images 4 --seeds 2 --steps 4 "
    "--baselines reuse --guidance 2 --temperature 1 --choice-temperature 10 --schedule-power 1",
}
"""What makes each command small enough for a test."""


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of mugs, plates and vases in four colours."""
    root, chance, lines = tmp_path_factory.mktemp("user") / "products", random.Random(0), []
    for kind in ("mug", "plate", "vase"):
        (root / kind).mkdir(parents=True)
        for number in range(50):
            colour = chance.choice(("red", "green", "blue", "black"))
            image = Image.new("RGB", (40, 40), "white")
            pen, x, y = ImageDraw.Draw(image), chance.randint(6, 12), chance.randint(6, 12)
            if kind == "mug":
                pen.rectangle((x, y, x + 18, y + 20), fill=colour)
            elif kind == "plate":
                pen.ellipse((x, y, x + 22, y + 12), fill=colour)
            else:
                pen.polygon([(x, y), (x + 20, y), (x + 14, y + 24), (x + 6, y + 24)], fill=colour)
            image.save(root / kind / f"{number:03d}.png")
            lines.append({"file_name": f"{kind}/{number:03d}.png", "text": f"a {colour} {kind}"})
    (root / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def commands() -> list[str]:
    """Those of the page's first block, in order."""
    text = (_ROOT / "docs" / "train_your_own.md").read_text()
    block = text.split("\n\n")[2]
    found = [" ".join(line.split()).removeprefix("swiftmask ") for line in block.splitlines()]
    assert len(found) == 5 and all(line.startswith("    swiftmask ") for line in block.splitlines())
    return found


def test_the_five_commands_of_the_page(
    products: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(products.parent)
    for command in commands():
        name = next(name for name in _SMALLER if command.startswith(name))
        with pytest.raises(SystemExit) as ended:
            main([*command.split(), *_SMALLER[name].split()])
        out, err = capsys.readouterr()
        assert ended.value.code == 0, f"{command}\n{out}\n{err}"
    model = products.parent / "runs" / "maskgit" / "model"
    assert re.search(r'"mug"', (model / "config.json").read_text())
