"""`verify`: the recorded cases pass, and it notices whatever could be wrong with one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from verify.cases import Case, Report, compare, kind_of, sibling_names, verify_folder

from swiftmask.cli import main
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig
from swiftmask.models.maskgit.network import Transformer, TransformerConfig

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(GOLDEN, tmp_path / "golden")


def statuses(folder: Path, only: str | None = None) -> dict[str, str]:
    return {report.name: report.status for report in verify_folder(folder, only=only)}


def one(folder: Path, name: str) -> Report:
    return next(report for report in verify_folder(folder) if report.name == name)


def edit(folder: Path, name: str, key: str, change: Tensor) -> None:
    tensors = load_file(folder / f"{name}.safetensors")
    assert key in tensors
    save_file(tensors | {key: change}, folder / f"{name}.safetensors")


def test_every_recorded_case_passes() -> None:
    found = statuses(GOLDEN)
    assert set(found.values()) == {"passed"}
    assert {name.split("/")[0] for name in found} >= {"maskgit_generate", "maskgit_schedules", "manifests"}


@pytest.mark.parametrize(
    "name", ["maskgit_transformer", "maskgit_vqgan", "maskgit_shortcut", "maskgit_generate"]
)
def test_a_wrong_number_is_noticed(name: str, folder: Path) -> None:
    tensors = load_file(folder / f"{name}.safetensors")
    key = next(key for key in sorted(tensors) if key.startswith("out."))
    wrong = tensors[key].clone()
    wrong.view(-1)[-1] += 1e-3 * wrong.abs().max() if wrong.is_floating_point() else 1
    edit(folder, name, key, wrong)
    found = statuses(folder)
    assert [case for case, status in found.items() if status == "failed"] == [name]


def test_not_a_number_is_noticed(folder: Path) -> None:
    tensors = load_file(folder / "maskgit_transformer.safetensors")
    edit(folder, "maskgit_transformer", "out.feature", torch.full_like(tensors["out.feature"], float("nan")))
    assert one(folder, "maskgit_transformer").status == "failed"


def test_a_wrong_schedule_and_manifest_are_noticed(folder: Path) -> None:
    schedules = json.loads((folder / "maskgit_schedules.json").read_text())
    schedules["full_steps"]["8_3"] = [0, 3, 6]
    (folder / "maskgit_schedules.json").write_text(json.dumps(schedules))
    manifests = folder / "manifests"
    shapes = json.loads((manifests / "maskgit_vqgan.json").read_text())
    shapes["tensors"]["encoder.conv_out.bias"] = [7]
    (manifests / "maskgit_vqgan.json").write_text(json.dumps(shapes))
    counted = json.loads((manifests / "maskgit_512_transformer.json").read_text())
    counted["parameters"] += 1
    (manifests / "maskgit_512_transformer.json").write_text(json.dumps(counted))
    failed = {name for name, status in statuses(folder).items() if status == "failed"}
    assert failed == {"maskgit_schedules", "manifests/maskgit_vqgan", "manifests/maskgit_512_transformer"}


def test_damaged_and_missing_files_fail_alone(folder: Path) -> None:
    (folder / "maskgit_vqgan.safetensors").unlink()
    data = (folder / "maskgit_shortcut.safetensors").read_bytes()
    (folder / "maskgit_shortcut.safetensors").write_bytes(data[: len(data) // 2])
    (folder / "maskgit_schedules.json").write_text("{")
    reports = {report.name: report for report in verify_folder(folder)}
    assert "maskgit_vqgan.safetensors is missing" in reports["maskgit_vqgan"].message
    assert "truncated" in reports["maskgit_shortcut"].message
    assert "truncated" in reports["maskgit_generate"].message
    assert "damaged" in reports["maskgit_schedules"].message
    assert reports["maskgit_transformer"].status == "passed"
    (folder / "maskgit_transformer.json").unlink()
    reports = {report.name: report for report in verify_folder(folder)}
    assert "maskgit_transformer.json is missing" in reports["maskgit_transformer"].message
    assert "maskgit_transformer.json is missing" in reports["maskgit_generate"].message


def test_unknown_kinds_fail(folder: Path) -> None:
    (folder / "novelty.json").write_text('{"config": {}}')
    (folder / "manifests" / "novelty.json").write_text('{"tensors": {}, "parameters": 0}')
    found = statuses(folder)
    assert (found["novelty"], found["manifests/novelty"]) == ("failed", "failed")
    assert list(found.values()).count("failed") == 2


def test_other_sizes_suffixes_and_siblings(folder: Path) -> None:
    """A second set of cases beside the first, made with our own networks, which the other tests prove."""
    for kind in ("maskgit_transformer", "maskgit_shortcut", "maskgit_generate"):
        for suffix in (".json", ".safetensors"):
            (folder / f"{kind}{suffix}").rename(folder / f"{kind}_b{suffix}")
    _write_other_sizes(folder)
    found = {name: status for name, status in statuses(folder).items() if "/" not in name}
    assert set(found.values()) == {"passed"}
    assert {"maskgit_transformer", "maskgit_transformer_b", "maskgit_generate_b", "maskgit_shortcut"} <= set(
        found
    )


@torch.no_grad()
def _write_other_sizes(folder: Path) -> None:
    sizes = TransformerConfig(
        width=40, depth=1, num_heads=5, mlp_width=24, codebook_size=19, num_classes=3, grid=3
    )
    transformer = Transformer(sizes).eval()
    tokens_BHW = torch.randint(20, (2, 3, 3))
    ids_BT = torch.cat([tokens_BHW.flatten(1), torch.tensor([[21], [sizes.null_id]])], dim=1)
    features_BTD = transformer(ids_BT)
    tensors = {f"state.{key}": value for key, value in transformer.state_dict().items()} | {
        "in.tokens": tokens_BHW,
        "in.labels": torch.tensor([1, 2]),
        "in.drop_label": torch.tensor([False, True]),
        "out.logits": transformer.logits(features_BTD[:, :-1]),
        "out.feature": features_BTD,
    }
    base = {
        "hidden_dim": 40,
        "codebook_size": 19,
        "grid": 3,
        "depth": 1,
        "heads": 5,
        "mlp_dim": 24,
        "nclass": 3,
    }
    _write(folder, "maskgit_transformer", base, tensors)
    shortcut = Shortcut(ShortcutConfig(width=40, bottleneck_width=40, num_blocks=2, num_heads=8)).eval()
    map_BT = torch.zeros(2, 10, dtype=torch.bool)
    map_BT[0, 2:4], map_BT[1, 5:7] = True, True
    positions_BN = torch.tensor([[2, 3], [5, 6]])
    new_BN = torch.randint(19, (2, 2))
    moved_BTD = shortcut(features_BTD, transformer.embed(new_BN, positions_BN), torch.tensor([0.3, 0.8]))
    tensors = {f"state.{key}": value for key, value in shortcut.state_dict().items()} | {
        "base.tok_emb.weight": transformer.tok_emb.weight,
        "base.pos_emb": transformer.pos_emb,
        "in.prev_feature": features_BTD,
        "in.new_token_ids": new_BN,
        "in.new_token_map": map_BT,
        "in.mask_ratio": torch.tensor([0.3, 0.8]),
        "out.feature": moved_BTD,
    }
    _write(folder, "maskgit_shortcut", base | {"n_block": 2, "bottleneck_ratio": 1, "num_heads": 8}, tensors)


def _write(folder: Path, name: str, config: dict[str, int], tensors: dict[str, Tensor]) -> None:
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "config": config}))
    save_file(
        {key: value.clone().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors"
    )


def test_kinds_and_siblings_by_name() -> None:
    assert kind_of("maskgit_generate-b", {}) == "maskgit_generate"
    assert kind_of("run7", {"name": "maskgit_vqgan"}) == "maskgit_vqgan"
    assert kind_of("novelty", {}) is None
    base = "weights of maskgit_transformer and maskgit_shortcut"
    case = Case("maskgit_generate_2", Path(), {"config": {"base": base}}, {})
    assert sibling_names(case, "maskgit_transformer") == ["maskgit_transformer_2", "maskgit_transformer"]
    case = Case("maskgit_generate", Path(), {"config": {"base": "weights of maskgit_transformer_x."}}, {})
    assert sibling_names(case, "maskgit_transformer")[0] == "maskgit_transformer_x"


def test_comparison() -> None:
    expected = {"a": torch.tensor([1.0, -2.0])}
    assert compare({"a": torch.tensor([1.0, -2.0 + 1e-5])}, expected)[0].ok
    assert not compare({"a": torch.tensor([1.0, -2.0 + 1e-4])}, expected)[0].ok
    assert not compare({"a": torch.tensor([[1.0, -2.0]])}, expected)[0].ok
    assert not compare({}, expected)[0].ok
    assert not compare({}, {})[0].ok


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def code(*arguments: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main(["verify", str(folder), *arguments])
        return int(str(stop.value.code))

    assert code("--only", "maskgit_schedules", "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (folder / "novelty.json").write_text("{}")
    assert code() == 1
    assert "unknown kind" in capsys.readouterr().out
    assert code("--only", "nothing") == 2
    assert "no case begins with 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names", [(), ("config.json", "model.safetensors"), ("generate.json", "damaged.json")]
)
def test_a_folder_of_other_files_is_refused(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model folder has a JSON file beside a safetensors file, too."""
    for name in names:
        (tmp_path / name).write_text("{" if name == "damaged.json" else '{"model": "maskgit"}')
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "holds no cases: expected KIND.json" in said
    assert said.count("\n") == 1
    if names:
        assert names[0].partition(".")[0] in said
