"""A folder or an iterator of images to metrics: resumed, shared and uninterrupted runs find the same."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from swiftmask.evaluate import feature_store
from swiftmask.evaluate.distances import frechet_distance
from swiftmask.evaluate.extractors import CANONICAL_INCEPTION, Identity, Readings
from swiftmask.evaluate.feature_store import FeatureStore, describe
from swiftmask.evaluate.folder_metrics import (
    FolderMetrics,
    MetricSettings,
    compare_sets,
)
from swiftmask.evaluate.image_sets import ImageSet, folder_images
from swiftmask.evaluate.statistics import FeatureStatistics, Moments

SETTINGS = MetricSettings(nearest=2, kid_subsets=5, splits=2)


@dataclass
class Means:
    """Means and deviations of the colours as features, softmax of the means as classes."""

    identity: Identity = Identity("means", "abc")
    seen: list[int] = field(default_factory=list)

    def __call__(self, images_B3HW: Tensor) -> Readings:
        self.seen.append(len(images_B3HW))
        mean_BD = images_B3HW.mean(dim=(2, 3))
        features_BD = torch.cat([mean_BD, images_B3HW.flatten(2).std(dim=2)], dim=1)
        return {"features": features_BD, "log_probabilities": (9 * mean_BD).log_softmax(dim=1)}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "CHUNK", 5)


def drawn(indices: Sequence[int], *, shift: float = 0.0) -> Tensor:
    draws = [torch.rand(3, 6, 6, generator=torch.Generator().manual_seed(7 + i)) for i in indices]
    return (torch.stack(draws) ** (1 + torch.tensor(list(indices))[:, None, None, None] % 3) + shift).clamp(
        0, 1
    )


def pictures(count: int = 23, *, shift: float = 0.0) -> ImageSet:
    return ImageSet(count, f"generated {shift}", lambda indices: drawn(indices, shift=shift))


def save(folder: Path, count: int, *, size: tuple[int, int] = (6, 6)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return folder


def test_the_overview_of_generate_is_no_image(tmp_path: Path) -> None:
    folder = save(tmp_path, 3)
    Image.new("RGB", (18, 6)).save(folder / "grid.png")
    assert folder_images(folder).count == 3


def test_a_killed_run_continues(tmp_path: Path) -> None:
    whole = describe(pictures(), Means(), tmp_path / "whole", batch_size=2)

    def killed(indices: Sequence[int]) -> Tensor:
        if 12 in indices:
            raise KeyboardInterrupt
        return drawn(indices)

    extractor = Means()
    with pytest.raises(KeyboardInterrupt):
        describe(replace(pictures(), images=killed), extractor, tmp_path / "x", batch_size=2)
    assert sum(extractor.seen) == 12
    progress: list[tuple[int, int]] = []
    extractor.seen.clear()
    resumed = describe(
        pictures(),
        extractor,
        tmp_path / "x",
        batch_size=2,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert sum(extractor.seen) == 13, "chunks that were there were described again"
    assert progress == [(10, 23), (15, 23), (20, 23), (23, 23)]
    assert torch.equal(resumed.readings()["features"], whole.readings()["features"])
    assert sorted(path.name for path in resumed.folder.iterdir() if path.name != ".lock") == [
        *(f"features-{first:08d}.safetensors" for first in range(0, 23, 5)),
        "features.json",
    ]


def test_two_shares_are_one_run(tmp_path: Path) -> None:
    """Chunk by chunk the same files, so every number is the same, whoever described what."""
    one = describe(pictures(), Means(), tmp_path / "one")
    first = describe(pictures(), Means(), tmp_path / "two", rank=0, num_ranks=2)
    with pytest.raises(ValueError, match="two lacks 2 of 5 parts: run again"):
        first.moments()
    two = describe(pictures(), Means(), tmp_path / "two", rank=1, num_ranks=2)
    assert torch.equal(one.moments().covariance_DD, two.moments().covariance_DD)
    reference = describe(pictures(30, shift=0.2), Means(), tmp_path / "reference")
    results = [compare_sets(store, reference, SETTINGS) for store in (one, two)]
    assert results[0] == results[1]


def test_moments_are_those_of_all_features(tmp_path: Path) -> None:
    store = describe(pictures(), Means(), tmp_path)
    expected = Means()(drawn(range(23)))["features"]
    torch.testing.assert_close(store.readings()["features"], expected)
    moments = store.moments()
    np.testing.assert_allclose(moments.covariance_DD.numpy(), np.cov(expected.double().numpy().T), rtol=1e-5)
    assert (moments.count, moments.extractor) == (23, "abc")


def by_name(result: FolderMetrics) -> dict[str, tuple[float, float | None]]:
    return {metric.name: (metric.value, metric.floor) for metric in result.metrics}


def test_every_metric_stands_beside_its_floor(tmp_path: Path) -> None:
    ours = describe(pictures(20, shift=0.3), Means(), tmp_path / "ours")
    real = describe(pictures(60), Means(), tmp_path / "real")
    result = compare_sets(ours, real, SETTINGS)
    found = by_name(result)
    assert list(found) == [
        f"{kind}_means" for kind in ("fd", "is", "kid", "precision", "recall", "density", "coverage")
    ]
    assert found["fd_means"][0] == pytest.approx(frechet_distance(ours.moments(), real.moments()))
    for name in ("fd_means", "kid_means"):
        value, floor = found[name]
        assert floor is not None and value > 3 * floor
    value, floor = found["precision_means"]
    assert floor is not None and value < floor
    assert (result.pictures, result.reference_pictures, result.floor_pictures) == (20, 60, 20)
    assert result.left_out == ()
    assert result.extractor == Identity("means", "abc")
    assert [metric.name for metric in result.metrics if metric.spread is not None] == [
        "is_means",
        "kid_means",
    ]


def test_kernel_distances_do_not_depend_on_the_size_of_features(tmp_path: Path) -> None:
    """Except under the canonical weights, whose definition has no scale."""

    @dataclass
    class Scaled:
        identity: Identity
        factor: float

        def __call__(self, images_B3HW: Tensor) -> Readings:
            return {"features": self.factor * Means()(images_B3HW)["features"]}

    def kid(identity: Identity, factor: float) -> float:
        extractor = Scaled(identity, factor)
        folder = tmp_path / f"{identity.sha256}-{factor}"
        stores = [describe(pictures(12, shift=shift), extractor, folder / str(shift)) for shift in (0.0, 0.3)]
        result = compare_sets(*stores, SETTINGS)
        assert result.left_out == (identity.metric("is"),)
        return by_name(result)[identity.metric("kid")][0]

    assert kid(Identity("x", "abc"), 100) == pytest.approx(kid(Identity("x", "abc"), 1), rel=1e-4)
    canonical = Identity("x", CANONICAL_INCEPTION)
    assert kid(canonical, 100) > 1000 * kid(canonical, 1)


def test_against_reference_statistics(tmp_path: Path) -> None:
    ours = describe(pictures(), Means(), tmp_path)
    result = compare_sets(ours, Moments(torch.zeros(6).double(), torch.eye(6).double()), SETTINGS)
    assert list(by_name(result)) == ["fd_means", "is_means"]
    assert result.left_out == tuple(
        f"{kind}_means" for kind in ("kid", "precision", "recall", "density", "coverage")
    )
    other = FeatureStatistics.of(torch.rand(5, 6)).moments("def")
    with pytest.raises(ValueError, match="different weights"):
        compare_sets(ours, other, SETTINGS)


def test_generated_folders_are_read_as_they_are(tmp_path: Path) -> None:
    folder = save(save(tmp_path / "out", 2, size=(6, 9)) / "b", 3, size=(6, 9)).parent
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_text("no image")
    found = folder_images(folder)
    images_B3HW = found.images([0, 4])
    assert found.count == 5
    assert images_B3HW.shape == (2, 3, 6, 9)
    expected = np.asarray(Image.open(folder / "b/002.png")) / 255
    np.testing.assert_allclose(images_B3HW[1].permute(1, 2, 0).numpy(), expected, atol=1e-7)
    save(folder, 1, size=(6, 9))
    assert folder_images(folder).fingerprint != found.fingerprint, "an image was written anew"


def test_real_folders_are_cropped(tmp_path: Path) -> None:
    save(tmp_path / "a", 2, size=(9, 14))
    save(tmp_path / "b", 2, size=(20, 16))
    found = folder_images(tmp_path, crop=8)
    assert found.images(range(4)).shape == (4, 3, 8, 8)
    assert found.fingerprint != folder_images(tmp_path, crop=6).fingerprint


def test_bad_images_are_named_and_what_is_done_stays(tmp_path: Path) -> None:
    folder = save(tmp_path / "out", 12)
    Image.new("RGB", (8, 6)).save(folder / "007.png")
    with pytest.raises(ValueError, match="007.png is 8x6, the first image 6x6: .*one size") as error:
        describe(folder_images(folder), Means(), tmp_path / "x")
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "x").glob("*.safetensors")] == ["features-00000000.safetensors"]
    (folder / "007.png").write_bytes((folder / "006.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"cannot read image .*007\.png \(.+\)") as error:
        describe(folder_images(folder), Means(), tmp_path / "y")
    assert "\n" not in str(error.value)


def test_too_few_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image folder"):
        folder_images(tmp_path / "absent")
    with pytest.raises(ValueError, match="has 1 images .*at least 2"):
        folder_images(save(tmp_path / "one", 1))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        pictures(1)
    few, many = (describe(pictures(n), Means(), tmp_path / str(n)) for n in (2, 20))
    for settings, fewest in ((SETTINGS, 3), (replace(SETTINGS, splits=5), 5)):
        with pytest.raises(ValueError, match=f"at least {fewest} images on either side, got 2"):
            compare_sets(few, many, settings)
    with pytest.raises(ValueError, match="1 to 2 splits of 2 images, got 5"):
        compare_sets(few, many.moments(), replace(SETTINGS, splits=5))
    result = compare_sets(many, describe(pictures(4), Means(), tmp_path / "4"), SETTINGS)
    assert result.floor_pictures == 0
    assert all(metric.floor is None for metric in result.metrics)


def test_a_folder_of_features_belongs_to_its_images_and_extractor(tmp_path: Path) -> None:
    store = describe(pictures(), Means(), tmp_path)
    for other, extractor in (
        (pictures(shift=0.1), Means()),
        (pictures(22), Means()),
        (pictures(), Means(Identity("means", "def"))),
    ):
        with pytest.raises(ValueError, match="features of other images.*choose another folder"):
            describe(other, extractor, tmp_path)
    assert json.loads((tmp_path / "features.json").read_text())["extractor"]["sha256"] == "abc"
    foreign = FeatureStore(tmp_path, Identity("means", "def"), store.fingerprint, store.count)
    with pytest.raises(ValueError, match="or other weights of it"):
        compare_sets(store, foreign, SETTINGS)


@pytest.mark.parametrize("damage", [b"", b"nothing"])
def test_damaged_features_are_named(tmp_path: Path, damage: bytes) -> None:
    store = describe(pictures(), Means(), tmp_path)
    (tmp_path / "features-00000005.safetensors").write_bytes(damage)
    with pytest.raises(
        ValueError, match="features-00000005.safetensors is damaged .*: remove it and run again"
    ):
        store.readings()["features"]


def test_strange_images_and_features_are_refused(tmp_path: Path) -> None:
    grey = ImageSet(5, "grey", lambda indices: torch.rand(len(indices), 1, 6, 6))
    with pytest.raises(ValueError, match=r"\[B, 3, H, W\] .*got \(5, 1, 6, 6\)"):
        describe(grey, Means(), tmp_path / "deep" / "grey")
    assert not (tmp_path / "deep").exists(), "a refused run leaves no folder"
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match=r"got \(5, 1, 6, 6"):
        describe(grey, Means(), tmp_path / "there")
    assert (tmp_path / "there").exists(), "nor does it remove one that is not its own"
    spoilt = replace(
        pictures(), images=lambda indices: drawn(indices).masked_fill(torch.tensor(7 in indices), torch.nan)
    )
    with pytest.raises(ValueError, match="features of image 5 are NaN"):
        describe(spoilt, Means(), tmp_path / "spoilt")
    assert (tmp_path / "spoilt" / "features.json").exists(), "what was described before stays"
