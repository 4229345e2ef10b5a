"""`swiftmask bench speed` on tiny models: every family prints the same keys."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swiftmask.cli.bench_speed import BenchSpeed
from swiftmask.evaluate.speed import SpeedReport, StepCost
from swiftmask.methods.shortcut import RotaryShortcutConfig, ShortcutConfig
from swiftmask.models.lumina_dimoo import weights as dimoo_weights
from swiftmask.models.lumina_dimoo.network import BackboneConfig
from swiftmask.models.mar import weights as mar_weights
from swiftmask.models.mar.network import NetworkConfig
from swiftmask.models.maskgit import weights as maskgit_weights
from swiftmask.models.maskgit.network import TransformerConfig
from swiftmask.models.meissonic import weights as meissonic_weights
from swiftmask.models.meissonic.network import TransformerConfig as MeissonicConfig

QUICK: dict[str, Any] = {"steps": 4, "repeats": 1, "matmul_sizes": (32,), "json": True}


@pytest.fixture
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The released sizes, shrunk."""
    maskgit_sizes = TransformerConfig(
        width=32, depth=1, num_heads=2, mlp_width=64, codebook_size=32, num_classes=3, grid=4
    )
    mar_sizes = NetworkConfig(
        encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32, decoder_depth=1,
        decoder_heads=2, head_width=16, head_depth=1, channels=16, grid=16, num_classes=3, buffer_size=4,
    )  # fmt: skip
    meissonic_sizes = MeissonicConfig(
        num_heads=2, head_width=16, num_double_blocks=1, num_single_blocks=1, text_width=8, codebook_size=16,
        vocabulary_size=17, rotary_axes=(4, 6, 6), downsample=True,
    )  # fmt: skip
    dimoo_sizes = BackboneConfig(width=32, depth=4, num_heads=2, mlp_width=32, vocabulary_size=134548)
    monkeypatch.setitem(maskgit_weights.RELEASED, "maskgit-256", maskgit_sizes)
    monkeypatch.setitem(mar_weights.RELEASED, "mar-b", mar_sizes)
    monkeypatch.setitem(meissonic_weights.RELEASED, "meissonic-1024", meissonic_sizes)
    monkeypatch.setattr(dimoo_weights, "RELEASED", dimoo_sizes)
    shortcuts = "swiftmask.methods.shortcut.weights"
    small = ShortcutConfig(width=32, bottleneck_width=16, num_heads=2)
    monkeypatch.setattr(f"{shortcuts}.RELEASED_SHORTCUT", small)
    rotary = RotaryShortcutConfig(width=32, bottleneck_width=16, num_heads=2, mlp_width=32)
    monkeypatch.setattr(f"{shortcuts}.RELEASED_ROTARY_SHORTCUT", rotary)


@pytest.mark.parametrize(
    ("model", "options", "kinds"),
    [
        ("maskgit-256", {"full_steps": 2}, {"full": 4, "shortcut": 2}),
        ("mar-b", {}, {"full": 4, "marval": 4}),
        ("meissonic-1024", {}, {"full": 4}),
        ("lumina-dimoo", {"layers": 2, "full_steps": 3}, {"full": 4, "shortcut": 3, "ml-cache": 2}),
    ],
)
@pytest.mark.usefixtures("tiny_sizes")
def test_random_weights_of_every_family(
    model: str, options: dict[str, Any], kinds: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert BenchSpeed(model=model, random_weights=True, dtype="bfloat16", **QUICK, **options).run() == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == set(SpeedReport.__slots__)
    assert all(set(kind) == set(StepCost.__slots__) for kind in printed["kinds"])
    assert {kind["kind"]: kind["full_steps"] for kind in printed["kinds"]} == kinds
    assert all(kind["flops"] > 0 and kind["ms"] > 0 for kind in printed["kinds"])
    assert printed["dtype"] == "bfloat16"
    assert printed["model"].startswith(f"{model} (random weights")


def test_a_loaded_model(tiny_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = BenchSpeed(model=str(tiny_scenes), full_steps=2, out=tmp_path / "speed.json", **QUICK)
    assert command.run() == 0
    printed = json.loads(capsys.readouterr().out)
    full, shortcut = printed["kinds"]
    assert (full["kind"], shortcut["kind"]) == ("full", "shortcut")
    assert full["flops"] > shortcut["flops"] > 0
    assert json.loads((tmp_path / "speed.json").read_text()) == printed
    replace(command, json=False, out=None, shortcut="none").run()
    table = capsys.readouterr().out
    assert "4 of 4" in table
    assert "shortcut" not in table.split("bench speed")[0]


def test_a_loaded_mar_has_its_student(tiny_mar_scenes: Path) -> None:
    command = BenchSpeed(model=str(tiny_mar_scenes), steps=4)
    full, student = command.kinds()
    assert student.name == "marval"
    assert student.flops < full.flops
    assert [kind.name for kind in replace(command, marval="none").kinds()] == ["full"]


def test_both_branches_count(tiny_scenes: Path) -> None:
    full = BenchSpeed(model=str(tiny_scenes), steps=4, full_steps=2).kinds()[0]
    rows, width = 2 * 37, 32
    matmuls = 2 * rows * (3 * width * width + 2 * (4 * width * width + 2 * width * 64))
    assert full.flops > matmuls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "maskgit-1024", "random_weights": True}, "unknown released size 'maskgit-1024'"),
        ({"model": "mar-b", "random_weights": True, "layers": 2}, "layers is a positive number of blocks"),
        ({"model": "maskgit-scenes", "layers": 2}, "--layers is for --random-weights"),
        ({"model": "maskgit-scenes", "steps": 1}, "--steps must be at least 2, got 1"),
        ({"model": "maskgit-scenes", "matmul_sizes": ()}, "--matmul-sizes is empty: name at least one"),
    ],
)
def test_wrong_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BenchSpeed(**options).run()
