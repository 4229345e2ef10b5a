"""Preset files: written and read, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from swiftmask.core.protocol import SamplingOptions
from swiftmask.evaluate.fingerprints import weights_fingerprint
from swiftmask.evaluate.presets import (
    Measured,
    Numbers,
    Preset,
    Settings,
    read_preset,
    write_preset,
)
from swiftmask.evaluate.quantities import Spread

PLACED = Settings(
    steps=16,
    shortcut="tiny-shortcut",
    full_steps=(0, 1, 4),
    sampling=SamplingOptions(guidance=3.0, denoising_steps=(9, 4)),
)


def preset_of(settings: Settings) -> Preset:
    numbers = Numbers(
        name="shortcut-16:3",
        gflop=1.5,
        ms=2.0,
        values={"score": Spread(0.9, 0.01), "fd_scenes": Spread(12.0, 1.0)},
    )
    measured = Measured(
        found=numbers,
        reference=numbers,
        best_full=numbers,
        speedup=2.0,
        objective="score",
        loss=Spread(0.01, 0.002),
        pictures=192,
        seeds=3,
        dtype="bfloat16",
        commit="abc",
        date="2026-01-01",
        machine="a machine",
        command="swiftmask tune tiny --speedup 2",
    )
    return Preset(
        model="tiny", fingerprint="f", accelerated_fingerprint="g", settings=settings, measured=measured
    )


def test_written_and_read(tmp_path: Path) -> None:
    for settings in (PLACED, Settings(steps=8), Settings(steps=8, caching="reuse", full_steps=4)):
        write_preset(preset_of(settings), tmp_path / "deep" / "preset.json")
        assert read_preset(tmp_path / "deep" / "preset.json") == preset_of(settings)
    assert not list(tmp_path.rglob("*.partial"))


def test_what_is_no_preset(tmp_path: Path) -> None:
    path = tmp_path / "preset.json"
    with pytest.raises(FileNotFoundError, match="no such preset"):
        read_preset(path)
    for text, message in (("{", "is damaged"), ("[]", "expected a JSON object"), ("{}", "is no preset")):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"preset.json.*{message}"):
            read_preset(path)
    write_preset(preset_of(PLACED), path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"version": 9}))
    with pytest.raises(ValueError, match="version 9, this swiftmask reads version 3"):
        read_preset(path)
    for damage in ({"settings": {"stps": 3}}, {"measured": {}}, {"settings": {"steps": "8", "sampling": {}}}):
        path.write_text(json.dumps(content | damage))
        with pytest.raises(ValueError, match=r"preset\.json: .*(unknown key|settings: |measured\.)"):
            read_preset(path)


def test_settings_given_beside_a_preset() -> None:
    assert Settings().over(PLACED) == PLACED
    guided = Settings(sampling=SamplingOptions(guidance=5.0)).over(PLACED)
    assert guided.sampling == SamplingOptions(guidance=5.0, denoising_steps=(9, 4))
    cached = Settings(caching="reuse").over(PLACED)
    assert (cached.caching, cached.shortcut, cached.full_steps) == ("reuse", None, (0, 1, 4))
    with pytest.raises(ValueError, match=r"placed in 16 steps \(0 1 4\): say how many of 12"):
        Settings(steps=12).over(PLACED)
    assert Settings(steps=12, full_steps=5).over(PLACED).full_steps == 5
    assert Settings(steps=16).over(PLACED) == PLACED


def test_a_fingerprint_tells_weights_apart_but_not_their_precision() -> None:
    module = nn.Linear(5, 3)
    first = weights_fingerprint(module, None)
    assert weights_fingerprint(module.to(torch.bfloat16)) == first
    assert weights_fingerprint(module.to(torch.float32)) == first
    assert weights_fingerprint(nn.Linear(5, 3)) != first
    assert weights_fingerprint(module, module) != first
