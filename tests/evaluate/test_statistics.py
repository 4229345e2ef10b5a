"""Streaming moments: any division of the data gives numpy's; files come back or complain."""

import pickle
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
    """Also with fewer images than features, and far from zero, where the textbook formula cancels."""
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
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"got \(0,\) and \(0, 0\)"),
        ({"mu": np.zeros(2), "sigma": np.diag([1, np.inf])}, "NaN or infinity"),
        *(
            ({"mu": np.zeros(2, dtype), "sigma": np.eye(2)}, f"mu is {shown}, expected float64")
            for dtype, shown in ((int, "int64"), (bool, "bool"), (complex, "complex128"), ("S3", r"\|S3"))
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(2, dtype=np.uint8)}, "sigma is uint8"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "negative eigenvalues"),
        ({"mu": np.zeros(3), "sigma": np.diag([1, 1, -1e-3])}, "negative eigenvalues"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2], [2, 1]])}, "negative eigenvalues"),
        ({"mu": np.zeros(2), "sigma": np.array([[0.0, 1e300], [1e300, 0]])}, "negative eigenvalues"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.5], [0.4, 1]])}, "not symmetric"),
    ],
)
def test_strange_npz_files(tmp_path: Path, arrays: dict[str, np.ndarray], complaint: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=complaint):
        read_moments(tmp_path / "x.npz")


class _Runs:
    """Writes a file if it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    path, marker = tmp_path / "x.npz", tmp_path / "marker"
    np.savez(path, mu=np.array([_Runs(marker)]), sigma=np.eye(1))
    with pytest.raises(ValueError, match="x.npz holds no reference statistics"):
        read_moments(path)
    path.write_bytes(pickle.dumps(_Runs(marker)))
    with pytest.raises(ValueError, match="x.npz holds no reference statistics"):
        read_moments(path)
    assert not marker.exists()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
@pytest.mark.parametrize("count", [2, 20, 400])
def test_rounding_is_no_damage(dtype: str, count: int, tmp_path: Path) -> None:
    """Fewer images than features leave eigenvalues of zero, which rounding makes negative."""
    rows_XD = features(count, 60, offset=3.0).numpy()
    sigma = np.cov(rows_XD, rowvar=False).astype(dtype)
    np.savez(tmp_path / "x.npz", mu=rows_XD.mean(0).astype(dtype), sigma=sigma)
    found = read_moments(tmp_path / "x.npz").covariance_DD
    assert torch.equal(found, torch.from_numpy(sigma.astype(np.float64)))


def test_statistics_of_constant_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", mu=np.ones(2), sigma=np.zeros((2, 2)))
    assert not read_moments(tmp_path / "x.npz").covariance_DD.any()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"count": torch.tensor(1)}, "at least 2 images, got 1"),
        ({"count": torch.tensor(-5)}, "at least 2 images, got -5"),
        ({"count": torch.tensor(9.5)}, "whole number .* got 9.5"),
        ({"count": torch.tensor([9, 9])}, r"count has shape \(2,\)"),
        ({"mean": torch.zeros(4, dtype=torch.int32)}, "mean is int32"),
        ({"scatter": torch.eye(4).to(torch.float8_e4m3fn)}, "scatter is float8_e4m3fn"),
        ({"mean": torch.full((4,), torch.nan)}, "NaN or infinity"),
        ({"mean": torch.zeros(3)}, r"got \(3,\) and \(4, 4\)"),
        ({"scatter": -torch.eye(4)}, "negative eigenvalues"),
        ({"scatter": torch.ones(4, 4).triu()}, "not symmetric"),
    ],
)
def test_strange_statistics_of_our_own(
    changes: dict[str, torch.Tensor], complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    sound = {"mean": torch.zeros(4), "scatter": torch.eye(4), "count": torch.tensor(9)}
    save_file(sound, path)
    assert read_moments(path).count == 9
    save_file(sound | changes, path)
    with pytest.raises(ValueError, match=complaint) as error:
        read_moments(path)
    assert str(path) in str(error.value)


def test_damage_at_every_byte_is_a_complaint_or_none(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            try:
                read_moments(path)
            except ValueError as error:
                assert str(path) in str(error) and "\n" not in str(error)


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
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        FeatureStatistics.of(torch.ones(1, 4)).moments()
    with pytest.raises(ValueError, match=r"\[images, width\], got \(4,\)"):
        FeatureStatistics.of(torch.ones(4))
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics.of(torch.tensor([[1.0], [float("inf")]]))
    with pytest.raises(ValueError, match="width: 2 against 3"):
        FeatureStatistics.of(torch.ones(2, 2)).merged(FeatureStatistics.of(torch.ones(2, 3)))
