"""Mean and covariance of features: accumulated in float64, merged over processes, kept in files.

The two parts of a data set combine by the pairwise update of Chan, Golub and LeVeque (1979), which loses no
digits where the textbook `E[x x^T] - E[x] E[x]^T` does: features with a mean far from zero cancel there.
Reference statistics of others (`adm_in256_stats.npz` of Dhariwal and Nichol, arXiv 2105.05233) hold mean and
covariance only.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from swiftmask.core.files import require_keys
from swiftmask.core.reading import first_line, some
from swiftmask.core.writing import written_whole


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What a Frechet distance needs to know about a set of pictures.

    Attributes:
        mean_D, covariance_DD: float64.
        count: pictures behind them; None where a file does not say.
        extractor: SHA-256 of the weights that made the features; None where a file does not say.
    """

    mean_D: Tensor
    covariance_DD: Tensor
    count: int | None = None
    extractor: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FeatureStatistics:
    """A data set of features so far.

    Attributes:
        mean_D: float64.
        scatter_DD: float64, sum of the outer products of the centred rows: covariance times count - 1.
    """

    count: int
    mean_D: Tensor
    scatter_DD: Tensor

    @classmethod
    def of(cls, features_XD: Tensor) -> Self:
        """Of one feature row per picture. Errors: ValueError for another shape, no row, NaN or infinity."""
        if features_XD.ndim != 2 or 0 in features_XD.shape:
            raise ValueError(f"expected features [pictures, width], got {tuple(features_XD.shape)}")
        features_XD = features_XD.detach().to("cpu", torch.float64)
        if not features_XD.isfinite().all():
            raise ValueError("expected finite features, got NaN or infinity: check pictures and extractor")
        mean_D = features_XD.mean(dim=0)
        centred_XD = features_XD - mean_D
        return cls(len(features_XD), mean_D, centred_XD.mT @ centred_XD)

    def merged(self, other: Self) -> Self:
        """Of both data sets together. Errors: ValueError if their features differ in width."""
        require_same_width(self.mean_D, other.mean_D)
        count = self.count + other.count
        shift_D = other.mean_D - self.mean_D
        between_DD = torch.outer(shift_D, shift_D) * (self.count * other.count / count)
        return type(self)(
            count,
            self.mean_D + shift_D * (other.count / count),
            self.scatter_DD + other.scatter_DD + between_DD,
        )

    def moments(self, extractor: str | None = None) -> Moments:
        """Mean and unbiased covariance. Errors: ValueError for fewer than two pictures."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return Moments(self.mean_D, self.scatter_DD / (self.count - 1), self.count, extractor)

    def save(self, path: str | Path, *, extractor: str, decoding: str = "") -> None:
        """A `.safetensors` file, written whole or not at all.

        Args:
            extractor: SHA-256 of the weights that made the features.
            decoding: how the pictures were read (`Decoding.identity`), for whoever looks into the file.
        """
        tensors = {
            "mean": self.mean_D.contiguous(),
            "scatter": self.scatter_DD.contiguous(),
            "count": torch.tensor(self.count),
        }
        with written_whole(Path(path)) as partial:
            save_file(tensors, partial, metadata={"extractor": extractor, "decoding": decoding})


def read_statistics(path: str | Path) -> tuple[FeatureStatistics, str]:
    """What `FeatureStatistics.save` wrote, and its extractor's SHA-256.

    Errors: FileNotFoundError; ValueError if it is another file or damaged.
    """
    path = _existing(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            extractor = (file.metadata() or {}).get("extractor", "")
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({first_line(error)}): make it again"
        ) from error
    require_keys(tensors, ("mean", "scatter", "count"), str(path), "a file of feature statistics")
    _check_shapes(tensors["mean"].shape, tensors["scatter"].shape, path)
    return FeatureStatistics(int(tensors["count"]), tensors["mean"], tensors["scatter"]), extractor


def read_moments(path: str | Path) -> Moments:
    """Reference statistics: our own `.safetensors`, or an `.npz` of others with `mu` and `sigma`.

    An `.npz` names neither its extractor nor its number of pictures: that it is of the same network (for
    `adm_in256_stats.npz`, Inception) and the same resolution is the caller's knowledge.

    Errors: FileNotFoundError; ValueError naming what is missing, damaged or of the wrong shape.
    """
    if Path(path).suffix == ".npz":
        return _read_npz(_existing(path))
    statistics, extractor = read_statistics(path)
    return statistics.moments(extractor)


def require_same_width(first_D: Tensor, second_D: Tensor) -> None:
    """Errors: ValueError if the last axes of features of two sets differ."""
    if first_D.shape[-1] != second_D.shape[-1]:
        raise ValueError(
            f"features differ in width: {first_D.shape[-1]} against {second_D.shape[-1]}; describe both sets "
            "with one extractor"
        )


def _read_npz(path: Path) -> Moments:
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("mu", "sigma") if name not in file]
            if missing:
                raise ValueError(f"it lacks {some(missing)} and has {some(list(file))}")
            mean, covariance = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} holds no reference statistics mu and sigma ({first_line(error)})"
        ) from error
    _check_shapes(mean.shape, covariance.shape, path)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"{path} holds NaN or infinity: download it again")
    return Moments(torch.from_numpy(mean), torch.from_numpy(covariance))


def _check_shapes(mean: tuple[int, ...], square: tuple[int, ...], path: Path) -> None:
    if len(mean) != 1 or tuple(square) != (*mean, *mean):
        raise ValueError(
            f"{path}: expected a mean [D] and a covariance [D, D], got {tuple(mean)} and {tuple(square)}"
        )


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such statistics file: {path} (expected .npz or .safetensors)")
    return path
