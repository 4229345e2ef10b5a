"""Shards: whole or not there, the same bytes whoever writes them, nothing generated twice."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from swiftmask.data.images.decode import Decoding
from swiftmask.data.sources.opening import DataConfig, open_source
from swiftmask.fleet.shards import MANIFEST, Plan, ShardFolder, draw_shard
from swiftmask.fleet.writers import KINDS, Columns, Entry, Kind

COLUMNS: list[Columns] = [{"text": f"circle {index % 3}", "seed": index} for index in range(10)]
SETTINGS = {"steps": 4, "sampling": {"guidance": 2.0}}
EVERY_KIND = pytest.mark.parametrize("kind", list(KINDS))


class Killed(BaseException):
    """What no code of ours catches."""


@dataclass
class Fake:
    """Images of one colour each; remembers what it was asked for."""

    dies_at: int | None = None
    drawn: Counter[int] = field(default_factory=Counter)

    def __call__(self, indices: Sequence[int]) -> list[Entry]:
        if self.dies_at in indices:
            raise Killed
        self.drawn.update(indices)
        return [_entry(index) for index in indices]


def _entry(index: int) -> Entry:
    file = BytesIO()
    Image.new("RGB", (8, 8), (index, 0, 0)).save(file, format="PNG")
    return Entry(index, COLUMNS[index], file.getvalue())


def shards(path: Path, kind: Kind = "webdataset", *, size: int = 4) -> ShardFolder:
    return ShardFolder(path, kind, Plan(len(COLUMNS), size))


def run(folder: ShardFolder, fake: Fake, *, batch_size: int = 2) -> None:
    folder.begin(SETTINGS, COLUMNS)
    for shard in folder.missing():
        draw_shard(folder, shard, fake, batch_size=batch_size)
    folder.complete()


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_plan_covers_every_image_once() -> None:
    plan = Plan(10, 4)
    assert [list(plan.indices(shard)) for shard in range(plan.num_shards)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


@EVERY_KIND
def test_a_killed_run_loses_a_batch_at_most(kind: Kind, tmp_path: Path) -> None:
    undisturbed = shards(tmp_path / "whole", kind)
    run(undisturbed, Fake())
    killed, fake = shards(tmp_path / "killed", kind), Fake(dies_at=6)
    with pytest.raises(Killed):
        run(killed, fake)
    assert sorted(fake.drawn) == [0, 1, 2, 3, 4, 5]
    assert not killed.file(1).exists()
    fake.dies_at = None
    run(killed, fake)
    assert fake.drawn == Counter(range(10)), "an image was generated twice or never"
    assert contents(killed.path) == contents(undisturbed.path)


@EVERY_KIND
def test_the_bytes_depend_on_no_batch_and_no_order(kind: Kind, tmp_path: Path) -> None:
    run(shards(tmp_path / "in-order", kind), Fake())
    other = shards(tmp_path / "other", kind)
    other.begin(SETTINGS, COLUMNS)
    for shard in (2, 0, 1):
        assert draw_shard(other, shard, Fake(), batch_size=3) == len(other.plan.indices(shard))
    other.complete()
    assert contents(other.path) == contents(tmp_path / "in-order")


@EVERY_KIND
def test_a_kill_before_the_record_generates_nothing_again(
    kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fake = shards(tmp_path, kind), Fake()

    def die(*_: object) -> None:
        raise Killed

    folder.begin(SETTINGS, COLUMNS)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("swiftmask.fleet.shards.write_json", die)
        draw_shard(folder, 0, fake, batch_size=2)
    assert folder.file(0).exists() and 0 in folder.missing()
    run(folder, fake)
    assert fake.drawn == Counter(range(10))


@EVERY_KIND
def test_a_damaged_shard_is_made_again(kind: Kind, tmp_path: Path) -> None:
    folder = shards(tmp_path, kind)
    run(folder, Fake())
    before = contents(tmp_path)
    path = folder.file(1) / "000000005.png" if kind == "folder" else folder.file(1)
    path.write_bytes(path.read_bytes()[:-1])
    fake = Fake()
    run(folder, fake)
    assert sorted(fake.drawn) == [4, 5, 6, 7]
    assert contents(tmp_path) == before


def test_a_damaged_batch_is_made_again(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    folder.begin(SETTINGS, COLUMNS)
    folder.keep(0, [_entry(0), _entry(1)])
    folder.keep(0, [_entry(2)])
    batch = next(tmp_path.rglob("000000000.tar"))
    batch.write_bytes(batch.read_bytes()[:700])
    assert folder.kept(0) == {2}
    fake = Fake()
    run(folder, fake)
    assert sorted(fake.drawn) == [0, 1, *range(3, 10)]


def test_another_run_is_refused(tmp_path: Path) -> None:
    run(shards(tmp_path), Fake())
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="guidance 2.0 there, 1.0 now"):
        shards(tmp_path).begin({"steps": 4, "sampling": {"guidance": 1.0}}, COLUMNS)
    with pytest.raises(ValueError, match="shard_size 4 there, 5 now"):
        shards(tmp_path, size=5).begin(SETTINGS, COLUMNS)
    with pytest.raises(ValueError, match="kind webdataset there, folder now"):
        shards(tmp_path, "folder").begin(SETTINGS, COLUMNS)
    with pytest.raises(ValueError, match="images .* there"):
        shards(tmp_path).begin(SETTINGS, [*COLUMNS[:-1], {"text": "another", "seed": 1}])
    assert contents(tmp_path) == before
    shards(tmp_path, size=5).begin(SETTINGS, COLUMNS, overwrite=True)
    assert list(contents(tmp_path)) == [MANIFEST]


def test_shards_of_nobody_are_kept(tmp_path: Path) -> None:
    (tmp_path / "shard-00000.tar").write_bytes(b"mine")
    with pytest.raises(ValueError, match="unknown run"):
        shards(tmp_path).begin(SETTINGS, COLUMNS, overwrite=True)
    assert (tmp_path / "shard-00000.tar").read_bytes() == b"mine"


@EVERY_KIND
def test_shards_are_data_to_train_on(kind: Kind, tmp_path: Path) -> None:
    folder = shards(tmp_path, kind)
    run(folder, Fake())
    where = folder.file(0) if kind == "folder" else tmp_path
    source = open_source(str(where), DataConfig(decoding=Decoding()))
    assert len(source.keys) == (4 if kind == "folder" else 10)
    assert source.captions(2) == ("circle 2",)
    assert int(source.read(3, 8)[0, 0, 0]) == 3


def test_the_manifest_tells_what_is_there(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    run(folder, Fake())
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["settings"] == SETTINGS
    assert [record["images"] for record in manifest["shards"]] == [4, 4, 2]
    for record in manifest["shards"]:
        assert (tmp_path / record["file"]).stat().st_size == record["num_bytes"]
