"""Streaming moments: any division of the data gives numpy's; files come back or complain."""

from functools import reduce
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from swiftmask.evaluate.statistics import FeatureStatistics, read_moments, read_statistics


def features(count: int, width: int, *, seed: int = 0, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator)
    return torch.randn(count, width, generator=generator) @ mix + offset


@pytest.mark.parametrize("sizes", [(40,), (1, 39), (13, 1, 20, 6), (1,) * 40])
@pytest.mark.parametrize("width", [1, 5, 60])
def test_merged_parts_are_the_whole(sizes: tuple[int, ...], width: int) -> None:
    """Also with fewer pictures than features, and far from zero, where the textbook formula cancels."""
    rows_XD = features(40, width, offset=1e4)
    parts = [FeatureStatistics.of(part) for part in rows_XD.split(list(sizes))]
    got = reduce(FeatureStatistics.merged, parts).moments("abc")
    expected = rows_XD.double().numpy()
    assert (got.count, got.extractor) == (40, "abc")
    np.testing.assert_allclose(got.mean_D.numpy(), expected.mean(0), rtol=1e-13)
    covariance = np.cov(expected, rowvar=False).reshape(width, width)
    np.testing.assert_allclose(got.covariance_DD.numpy(), covariance, rtol=1e-7, atol=1e-8)
    assert got.covariance_DD.dtype == torch.float64


def test_constant_features_have_no_covariance() -> None:
    halves = [FeatureStatistics.of(torch.full((8, 3), 0.1)) for _ in range(2)]
    assert torch.equal(halves[0].merged(halves[1]).scatter_DD, torch.zeros(3, 3, dtype=torch.float64))


def test_files_come_back(tmp_path: Path) -> None:
    statistics, path = FeatureStatistics.of(features(9, 4)), tmp_path / "new/reference.safetensors"
    statistics.save(path, extractor="abc")
    found, extractor = read_statistics(path)
    assert (found.count, extractor) == (9, "abc")
    assert torch.equal(found.mean_D, statistics.mean_D)
    assert torch.equal(found.scatter_DD, statistics.scatter_DD)
    moments = read_moments(path)
    assert (moments.count, moments.extractor) == (9, "abc")
    assert torch.equal(moments.covariance_DD, statistics.moments().covariance_DD)
    assert [file.name for file in path.parent.iterdir()] == ["reference.safetensors"]


def test_reference_statistics_of_others(tmp_path: Path) -> None:
    """As `adm_in256_stats.npz`: mu and sigma, and more that does not matter."""
    path, mean, covariance = tmp_path / "adm.npz", np.arange(3.0), np.eye(3, dtype=np.float32)
    np.savez(path, mu=mean, sigma=covariance, mu_s=np.zeros(7), sigma_s=np.eye(7))
    moments = read_moments(path)
    assert moments.mean_D.tolist() == [0, 1, 2]
    assert torch.equal(moments.covariance_DD, torch.eye(3, dtype=torch.float64))
    assert moments.count is None and moments.extractor is None


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mu": np.zeros(3)}, "holds no reference statistics.*lacks sigma and has mu"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mean \[D\] and a covariance \[D, D\], got \(3,\)"),
        ({"mu": np.zeros((1, 3)), "sigma": np.eye(3)}, r"got \(1, 3\) and \(3, 3\)"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN or infinity"),
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "holds no reference statistics"),
    ],
)
def test_strange_npz_files(tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=complaint):
        read_moments(tmp_path / "x.npz")


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such statistics file: .*absent"):
        read_moments(tmp_path / "absent.npz")
    np.savez(tmp_path / "x.npz", mu=np.zeros(3), sigma=np.eye(3))
    whole = (tmp_path / "x.npz").read_bytes()
    (tmp_path / "x.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "y.safetensors").write_bytes(b"nothing")
    save_file({"weight": torch.zeros(2)}, tmp_path / "z.safetensors")
    for name, complaint in (
        ("x.npz", "holds no reference statistics"),
        ("y.safetensors", "truncated or no safetensors"),
        ("z.safetensors", "is not a file of feature statistics: it lacks mean"),
    ):
        with pytest.raises(ValueError, match=complaint) as error:
            read_moments(tmp_path / name)
        assert "\n" not in str(error.value)


def test_complaints() -> None:
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        FeatureStatistics.of(torch.ones(1, 4)).moments()
    with pytest.raises(ValueError, match=r"\[pictures, width\], got \(4,\)"):
        FeatureStatistics.of(torch.ones(4))
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics.of(torch.tensor([[1.0], [float("inf")]]))
    with pytest.raises(ValueError, match="width: 2 against 3"):
        FeatureStatistics.of(torch.ones(2, 2)).merged(FeatureStatistics.of(torch.ones(2, 3)))
