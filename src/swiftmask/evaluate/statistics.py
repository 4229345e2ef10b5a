"""Mean and covariance of features: accumulated in float64, merged over processes, kept in files.

The two parts of a data set combine by the pairwise update of Chan, Golub and LeVeque (1979), which loses no
digits where the textbook `E[x x^T] - E[x] E[x]^T` does: features with a mean far from zero cancel there.
Reference statistics of others (`adm_in256_stats.npz` of Dhariwal and Nichol, arXiv 2105.05233) hold mean and
covariance only.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from swiftmask.core.files import require_keys
from swiftmask.core.reading import DAMAGES, some
from swiftmask.core.settings import first_line
from swiftmask.core.writing import write_bytes

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ROUNDING = 1e-5
"""Relative error that a covariance may have: a file in float64 may have been computed in float32."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What a Frechet distance needs to know about a set of images.

    Attributes:
        mean_D, covariance_DD: float64.
        count: images behind them; None where a file does not say.
        extractor: SHA-256 of the weights that made the features; None where a file does not say.
    """

    mean_D: Tensor
    covariance_DD: Tensor
    count: int | None = None
    extractor: str | None = None

    @cached_property
    def covariance_root(self) -> Tensor:
        """The symmetric root of the covariance; computed once, for all that is compared with this."""
        values_D, vectors_DD = torch.linalg.eigh(self.covariance_DD)
        return (vectors_DD * values_D.clamp(min=0).sqrt()) @ vectors_DD.mT


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
        """Of one feature row per image. Errors: ValueError for another shape, no row, NaN or infinity."""
        if features_XD.ndim != 2 or 0 in features_XD.shape:
            raise ValueError(f"expected features [images, width], got {tuple(features_XD.shape)}")
        features_XD = features_XD.detach().to("cpu", torch.float64)
        if not features_XD.isfinite().all():
            raise ValueError("expected finite features, got NaN or infinity: check images and extractor")
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
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return Moments(self.mean_D, self.scatter_DD / (self.count - 1), self.count, extractor)

    def save(self, path: str | Path, *, extractor: str, decoding: str = "") -> None:
        """A `.safetensors` file, written whole or not at all.

        Args:
            extractor: SHA-256 of the weights that made the features.
            decoding: how the images were read (`Decoding.identity`), for whoever looks into the file.
        """
        tensors = {
            "mean": self.mean_D.contiguous(),
            "scatter": self.scatter_DD.contiguous(),
            "count": torch.tensor(self.count),
        }
        write_bytes(Path(path), save(tensors, metadata={"extractor": extractor, "decoding": decoding}))


def read_statistics(path: str | Path) -> tuple[FeatureStatistics, str]:
    """What `FeatureStatistics.save` wrote, and its extractor's SHA-256.

    Errors: FileNotFoundError; ValueError if it is another file or damaged, of fewer than two images, or
    holds no covariance (`_check_covariance`).
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
    require_keys(tensors, {"mean": 1, "scatter": 2, "count": 0}, str(path), "a file of feature statistics")
    for name in ("mean", "scatter"):
        if tensors[name].dtype not in _FLOATS:
            _refuse_dtype(path, name, str(tensors[name].dtype).removeprefix("torch."))
    count, mean_D, scatter_DD = tensors["count"], tensors["mean"].double(), tensors["scatter"].double()
    _check_covariance(mean_D, scatter_DD, path, rounding=torch.finfo(tensors["scatter"].dtype).eps)
    if count.dtype != torch.int64 or count.shape != () or int(count) < 2:
        raise ValueError(f"{path}: count must be a whole number of at least 2 images, got {count.tolist()}")
    return FeatureStatistics(int(count), mean_D, scatter_DD), extractor


def read_moments(path: str | Path) -> Moments:
    """Reference statistics: our own `.safetensors`, or an `.npz` of others with `mu` and `sigma`.

    An `.npz` names neither its extractor nor its number of images: that it is of the same network (for
    `adm_in256_stats.npz`, Inception) and the same resolution is the caller's knowledge.

    Errors: FileNotFoundError; ValueError naming what is missing, damaged, of the wrong shape or dtype, not
    finite or no covariance. Pickled objects are refused.
    """
    if Path(path).suffix.lower() == ".npz":
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
            mean, covariance = (np.asarray(file[name]) for name in ("mu", "sigma"))
    except DAMAGES as error:
        raise ValueError(
            f"{path} holds no reference statistics mu and sigma ({first_line(error)})"
        ) from error
    for name, array in (("mu", mean), ("sigma", covariance)):
        if array.dtype.kind != "f":
            _refuse_dtype(path, name, str(array.dtype))
    mean_D, covariance_DD = (torch.from_numpy(array.astype(np.float64)) for array in (mean, covariance))
    _check_covariance(mean_D, covariance_DD, path, rounding=float(np.finfo(covariance.dtype).eps))
    return Moments(mean_D, covariance_DD)


def _refuse_dtype(path: Path, name: str, dtype: str) -> None:
    raise ValueError(f"{path}: {name} is {dtype}, expected float64 or float32: make the statistics again")


def _check_covariance(mean_D: Tensor, square_DD: Tensor, path: Path, *, rounding: float) -> None:
    """Errors: ValueError unless the mean is [D] and the covariance (or scatter) [D, D], both finite, and the
    latter symmetric and positive semi-definite within rounding: `rounding` is that of the dtype on disk.
    """
    mean, square = tuple(mean_D.shape), tuple(square_DD.shape)
    if len(mean) != 1 or square != (*mean, *mean) or not mean[0]:
        raise ValueError(f"{path}: expected a mean [D] and a covariance [D, D], got {mean} and {square}")
    if not (mean_D.isfinite().all() and square_DD.isfinite().all()):
        raise ValueError(f"{path} holds NaN or infinity: download it again")
    largest = square_DD.abs().max()
    if not largest:
        return
    scaled_DD, rounding = square_DD / largest, max(rounding, _ROUNDING)
    if (scaled_DD - scaled_DD.mT).abs().max() > rounding:
        raise ValueError(f"{path}: the covariance is not symmetric: make the statistics again")
    # Cholesky's factor exists if no eigenvalue is below minus what is added; it costs less than eigenvalues.
    shift = rounding * scaled_DD.norm()
    shifted_DD = (scaled_DD + scaled_DD.mT) / 2 + shift * torch.eye(*square, dtype=scaled_DD.dtype)
    if int(torch.linalg.cholesky_ex(shifted_DD).info):
        raise ValueError(f"{path}: the covariance has negative eigenvalues: make the statistics again")


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no such statistics file: {path} (expected .npz or .safetensors)")
    return path
