"""Files of a shortcut: round trips, sizes read off tensors, and errors that name what is wrong."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from swiftmask.core.protocol import Spec
from swiftmask.methods.shortcut import Shortcut, ShortcutConfig, read_shortcut, write_shortcut
from swiftmask.methods.shortcut.weights import infer_shortcut_config

SMALL = ShortcutConfig(width=32, bottleneck_width=16, num_heads=4, mlp_width=64, time_frequencies=8)
BASE = Spec(
    name="maskgit",
    draws="class",
    grid=(4, 4),
    width=32,
    codebook_size=16,
    channels=None,
    mask_id=16,
    has_log_prob=True,
)


def _same(one: Shortcut, other: Shortcut, tolerance: float = 0.0) -> None:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    for (key, value), (other_key, other_value) in pairs:
        assert key == other_key
        torch.testing.assert_close(value, other_value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, num_blocks=2),
        replace(SMALL, bottleneck_width=32),
        replace(SMALL, time_frequencies=None),
    ],
)
def test_bare_files(config: ShortcutConfig, suffix: str, tmp_path: Path) -> None:
    shortcut = Shortcut(config)
    path = tmp_path / f"shortcut{suffix}"
    if suffix == ".pth":
        torch.save(shortcut.state_dict(), path)
    else:
        save_file(shortcut.state_dict(), path)
    again = read_shortcut(path, num_heads=4, base=BASE)
    assert again.config == config
    assert not again.training
    _same(shortcut, again)


def test_folder(tmp_path: Path) -> None:
    shortcut, folder = Shortcut(SMALL), tmp_path / "shortcut"
    write_shortcut(folder, shortcut, base=BASE, base_name="maskgit-scenes", provenance={"seed": 3})
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "provenance.json",
    ]
    content = json.loads((folder / "config.json").read_text())
    assert content["method"] == "shortcut"
    assert content["base_model"] == {
        "name": "maskgit-scenes",
        "family": "maskgit",
        "width": 32,
        "grid": [4, 4],
        "codebook_size": 16,
        "channels": None,
    }
    assert json.loads((folder / "provenance.json").read_text()) == {"seed": 3}
    again = read_shortcut(folder, base=BASE)
    assert again.config == SMALL
    _same(shortcut, again)


def test_half_precision_on_disk(tmp_path: Path) -> None:
    shortcut = Shortcut(SMALL)
    write_shortcut(tmp_path / "full", shortcut, base=BASE, provenance={})
    write_shortcut(tmp_path / "half", shortcut, base=BASE, provenance={}, dtype=torch.float16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.75 * full
    again = read_shortcut(tmp_path / "half")
    assert all(value.dtype == torch.float32 for value in again.state_dict().values())
    _same(shortcut, again, tolerance=1e-3)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (replace(BASE, width=48), "width 32 against 48"),
        (replace(BASE, grid=(8, 8)), r"grid \(4, 4\) against \(8, 8\)"),
        (replace(BASE, codebook_size=32), "codebook_size 16 against 32"),
        (replace(BASE, name="mar"), "family maskgit against mar"),
    ],
)
def test_another_base_model_is_refused(base: Spec, message: str, tmp_path: Path) -> None:
    write_shortcut(tmp_path, Shortcut(SMALL), base=BASE, base_name="maskgit-scenes", provenance={})
    with pytest.raises(ValueError, match=f"made for maskgit-scenes and does not fit this model: {message}$"):
        read_shortcut(tmp_path, base=base)


def test_a_bare_file_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(Shortcut(SMALL).state_dict(), tmp_path / "s.pth")
    with pytest.raises(ValueError, match="does not fit this model: width 32 against 48"):
        read_shortcut(tmp_path / "s.pth", num_heads=4, base=replace(BASE, width=48))


def test_wrong_keys_are_named(tmp_path: Path) -> None:
    state = Shortcut(SMALL).state_dict()
    del state["proj_out.bias"]
    torch.save(state | {"extra": torch.ones(1)}, tmp_path / "s.pth")
    with pytest.raises(ValueError, match=r"1 missing: proj_out\.bias; 1 unexpected: extra"):
        read_shortcut(tmp_path / "s.pth", num_heads=4)


def test_other_architectures_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"is not a MaskGIT shortcut: it lacks blocks\.0\.cross_attn\.norm\.weight"
    ):
        infer_shortcut_config({"pos_emb": torch.zeros(1)})
    with pytest.raises(ValueError, match="a Lumina-DiMOO shortcut, another architecture"):
        infer_shortcut_config({"ln_f.weight": torch.zeros(1)})


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such weights file: .*absent\.pth"):
        read_shortcut(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match=r"no .*config\.json: expected a shortcut folder"):
        read_shortcut(tmp_path)
    for name in ("cut.pth", "cut.safetensors"):
        whole = tmp_path / f"whole{Path(name).suffix}"
        state = Shortcut(SMALL).state_dict()
        torch.save(state, whole) if name.endswith(".pth") else save_file(state, whole)
        for size in (0, 7, whole.stat().st_size // 2):
            (tmp_path / name).write_bytes(whole.read_bytes()[:size])
            with pytest.raises(ValueError, match="truncated"):
                read_shortcut(tmp_path / name)
    torch.save({"weights": Path("x")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="could run code and is refused"):
        read_shortcut(tmp_path / "evil.pth")
    torch.save({"step": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is no checkpoint of a model"):
        read_shortcut(tmp_path / "other.pth")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"method": "mar"}', '{"method": "shortcut", "base_model": {}}']
)
def test_bad_config(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json( is damaged|: method must be|: shortcut is missing)"):
        read_shortcut(tmp_path)


def test_a_failed_write_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shortcut = Shortcut(SMALL)
    write_shortcut(tmp_path, shortcut, base=BASE, provenance={})

    def full_disk(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("swiftmask.core.files.save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_shortcut(tmp_path, Shortcut(SMALL), base=BASE, provenance={})
    assert not list(tmp_path.glob("*.partial"))
    _same(shortcut, read_shortcut(tmp_path))
