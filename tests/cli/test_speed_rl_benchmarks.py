"""The scripts that compare variants of Speed-RL, and time it at Meissonic's size."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from swiftmask.cli.overrides import override
from swiftmask.data.scenes import CLASS_NAMES
from swiftmask.models.maskgit import MaskGIT
from swiftmask.models.maskgit.codec import VQGAN, VQGANConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig
from swiftmask.models.meissonic import network
from swiftmask.models.meissonic.weights import RELEASED
from swiftmask.recipes import meissonic_scenes_speed_rl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """An untrained MaskGIT of Scenes classes, on 4x4 tokens."""
    sizes = TransformerConfig(
        width=16, depth=1, num_heads=2, mlp_width=16, codebook_size=16, num_classes=len(CLASS_NAMES), grid=4
    )
    codec = VQGANConfig(
        ch=4, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), resolution=8, z_channels=4,
        n_embed=16, embed_dim=4, num_groups=2,
    )  # fmt: skip
    model = MaskGIT(Transformer(sizes), VQGAN(codec), class_names=CLASS_NAMES)
    model.save_pretrained(tmp_path / "base", provenance={})
    return tmp_path / "base"


@pytest.mark.slow
def test_curves_of_every_variant_and_seed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["speed_rl.step_counts=2", "speed_rl.num_generations=2", "speed_rl.generation_batch_size=4"]
    arguments = ["--recipe", "maskgit-scenes-speed-rl", "--base", base, "--rounds", 2, "--out", tmp_path]
    arguments += ["--variants", "baseline", "sequence-likelihood", "--seeds", 0, 1]
    monkeypatch.setattr(sys, "argv", ["speed_rl_ablations.py", *map(str, arguments), "--set", *small])
    module = script("speed_rl_ablations")
    module.main()
    content = json.loads((tmp_path / "ablations.json").read_text())
    assert [entry["variant"] for entry in content["variants"]] == ["baseline", "sequence-likelihood"]
    for entry in content["variants"]:
        assert [run["seed"] for run in entry["runs"]] == [0, 1]
        judged = [run["curves"]["rewards/scenes-judge/mean"] for run in entry["runs"]]
        assert all(curve["rounds"] == [1, 2] and len(curve["values"]) == 2 for curve in judged)
        assert entry["last_quarter"]["kl"] == [run["curves"]["kl"]["values"][-1] for run in entry["runs"]]
    first, second = (run["curves"]["diversity"] for run in content["variants"][0]["runs"])
    assert first != second
    lines = (tmp_path / "ablations.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "first round of all",
        "baseline",
        "sequence-likelihood",
    ]
    ends = content["variants"][1]["last_quarter"]["rewards/scenes-judge/mean"]
    assert f"| {ends[0]:.3f}, {ends[1]:.3f} |" in lines[-1]
    assert (tmp_path / "ablations.png").read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr("swiftmask.methods.speed_rl.rounds.roll_out", None)  # nothing is drawn again
    module.main()
    again = json.loads((tmp_path / "ablations.json").read_text())
    assert again["variants"] == content["variants"]


def test_every_ablation_changes_the_recipe_in_its_own_way() -> None:
    module = script("speed_rl_ablations")
    recipe = meissonic_scenes_speed_rl.recipe()
    changed = {
        name: override(recipe, [*module.ONE_NUMBER, *own]).speed_rl for name, own in module.VARIANTS.items()
    }
    assert changed["baseline"] == recipe.speed_rl
    assert changed["speed-reward"].step_counts == (4, 5, 6)
    assert [name for name, speed_rl in changed.items() if speed_rl.speed_weight > 0] == ["speed-reward"]
    assert len({repr(speed_rl) for speed_rl in changed.values()}) == len(module.VARIANTS)
    assert {name for names in module.QUESTIONS.values() for name in names} == set(module.VARIANTS)
    assert (recipe.speed_rl.kl_estimator, recipe.speed_rl.filter.percentile) == ("ce", 25.0)


def test_times_at_meissonics_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = network.TransformerConfig(
        num_heads=2, head_width=16, num_double_blocks=1, num_single_blocks=1, text_width=8, codebook_size=16,
        vocabulary_size=17, rotary_axes=(4, 6, 6), downsample=True,
    )  # fmt: skip
    monkeypatch.setitem(RELEASED, "meissonic-1024", sizes)
    arguments = ["--side", 2, "--repeats", 1, "--matmul-sizes", 32, "--batch", 2, "--precision", "bf16"]
    arguments += ["--method", "full", "--activations", "kept", "--out", tmp_path / "speed.json"]
    monkeypatch.setattr(sys, "argv", ["meissonic_speed.py", *map(str, arguments)])
    script("meissonic_speed").main()
    report = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "speed.json").read_text()) == report
    # Of two steps: forward and backward of one branch, both branches held still, the reference.
    passes = report["update_flops"] / (2 * report["forward_flops"] / 2)
    assert 5 < passes < 7
    assert min(report["forward_ms"], report["update_ms"], report["optimizer_ms"]) > 0
    hours = report["estimate"]
    assert hours["rollout_hours"] == pytest.approx(300 * 64 * 15 * report["forward_ms"] / 2 / 3.6e6)


def test_how_much_rounds_agree() -> None:
    module = script("speed_rl_noise")
    same = torch.tensor([3.0, 4.0]).repeat(5, 1)
    assert module.jackknife(same @ same.T) == pytest.approx((1.0, 0.0))
    assert module.jackknife(torch.eye(5)) == pytest.approx((0.0, 0.0))
    # A signal of norm 1 in noise of norm 3 and 1000 directions: a tenth of the square is agreed on.
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(40, 1000, generator=generator) * 3 / 1000**0.5
    noisy[:, 0] += 1
    cosine, error = module.jackknife(noisy @ noisy.T)
    assert cosine == pytest.approx(0.1, abs=3 * error)
    assert 0 < error < 0.03
    steps = torch.stack([noisy, torch.zeros_like(noisy)], dim=1)
    first, last, every, but_last = module.agreements(steps, [3, 1])
    assert (first.power_share, last.power_share, every.power_share) == pytest.approx((1, 0, 1))
    assert (first.cosine, every.cosine, but_last.cosine) == pytest.approx((cosine, cosine, cosine))
    assert [row.num_tokens for row in (first, last, every, but_last)] == [3, 1, 4, 3]


def test_the_noise_of_every_step(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [f"model={base}"]
    arguments = ["--recipe", "maskgit-scenes-speed-rl", "--rounds", "3", "--json", str(tmp_path / "n.json")]
    monkeypatch.setattr(sys, "argv", ["speed_rl_noise.py", *arguments, "--set", *small])
    module = script("speed_rl_noise")
    with pytest.raises(ValueError, match="rewards of every group are equal"):
        module.main()  # an untrained model satisfies nobody
    (tmp_path / "bright.py").write_text("def score(images, prompts):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", [*sys.argv, "reward=bright:score"])
    module.main()
    rows = {row["tokens"]: row for row in json.loads((tmp_path / "n.json").read_text())["rows"]}
    steps = [rows[f"step {step} of 5"] for step in range(1, 6)]
    assert sum(row["num_tokens"] for row in steps) == rows["all steps"]["num_tokens"] == 16
    assert rows["all but the last"]["num_tokens"] == 16 - steps[-1]["num_tokens"]
    assert rows["all steps"]["power_share"] == pytest.approx(1)
    assert all(-1 <= row["cosine"] <= 1 and row["error"] >= 0 for row in rows.values())
    table = (tmp_path / "n.md").read_text().splitlines()
    assert len(table) == 2 + len(rows)
