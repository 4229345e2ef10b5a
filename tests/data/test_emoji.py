"""The Emoji images: the pack of the checkout, what is said of each image, and packages that are wrong."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from swiftmask.data.emoji import (
    NUM_IMAGES,
    STYLES,
    EmojiRecord,
    build_emoji,
    free_prompts,
    held_out_prompts,
    trained_prompts,
)
from swiftmask.data.emoji.build import PIXELS_SHA256, pack_images, pixels_sha256, read_records
from swiftmask.data.emoji.packages import ICONS, WORDS, read_concepts
from swiftmask.data.emoji.records import held_out_style

PACK = Path(__file__).parents[2] / "data" / "emoji"


@pytest.fixture(scope="module")
def records() -> list[EmojiRecord]:
    return read_records(PACK)


def test_the_pack_has_the_published_pixels(records: list[EmojiRecord]) -> None:
    assert pixels_sha256(pack_images(PACK, records)) == PIXELS_SHA256
    assert json.loads((PACK / "dataset.json").read_text())["pixels_sha256"] == PIXELS_SHA256


def test_every_concept_has_every_style_once(records: list[EmojiRecord]) -> None:
    assert len(records) == NUM_IMAGES
    assert Counter(record.style for record in records) == dict.fromkeys(STYLES, NUM_IMAGES // len(STYLES))
    assert len({(record.concept, record.style) for record in records}) == NUM_IMAGES


def test_one_style_of_a_tenth_of_the_concepts_is_held_out(records: list[EmojiRecord]) -> None:
    held_out = [record for record in records if record.split == "held-out"]
    assert len(held_out) == len({record.concept for record in held_out})
    assert 0.08 < len(held_out) / (NUM_IMAGES / len(STYLES)) < 0.12
    shares = Counter(record.style for record in held_out)
    assert min(shares.values()) > 0.15 * len(held_out)


def test_the_split_of_a_concept_depends_on_its_name_alone() -> None:
    style = held_out_style("face-with-tears-of-joy")
    record = EmojiRecord.of("face-with-tears-of-joy", style or "noto", "Smileys & Emotion", ())
    assert record.split == ("held-out" if style else "train")
    assert record.caption == f"face with tears of joy, {style or 'noto'} style"


def test_a_caption_asks_for_the_style_and_the_concept(records: list[EmojiRecord]) -> None:
    for record in records[::97]:
        for caption in (record.caption, *record.captions):
            assert record.style in caption
            assert record.concept in caption


def test_no_image_shows_a_free_prompt(records: list[EmojiRecord]) -> None:
    prompts = [each.prompt for each in free_prompts(records)]
    assert len(set(prompts)) == 200
    assert not {record.caption for record in records} & set(prompts)


def test_every_line_of_the_prompt_files_says_what_a_reader_is_to_find(records: list[EmojiRecord]) -> None:
    pairs = {(record.concept, record.style): record.split for record in records}
    asked = {"held-out": held_out_prompts(records), "train": trained_prompts(records)}
    for split, prompts in asked.items():
        assert len({each.prompt for each in prompts}) == len(prompts) >= 150
        for each in prompts:
            assert pairs[each.concept, each.style] == split
            assert each.prompt == f"{each.concept}, {each.style} style"
    for each in free_prompts(records):
        assert (each.concept, each.style) in pairs
        assert each.prompt.endswith(f" {each.concept}, {each.style} style")


def test_the_notice_names_every_set_that_asks_for_it() -> None:
    notice = (PACK / "NOTICE.md").read_text()
    assert all(
        name in notice for name in ("Noto Emoji", "Twemoji", "CC-BY-4.0", "Fluent Emoji", "Apache-2.0")
    )


def test_packages_are_read_packed_or_unpacked(tmp_path: Path) -> None:
    _write_packages(tmp_path)
    packed = read_concepts(tmp_path)
    for package in (*ICONS.values(), WORDS):
        archive = tmp_path / package.archive
        with tarfile.open(archive) as tar:
            tar.extractall(archive.with_suffix(""), filter="data")
        archive.unlink()
    assert read_concepts(tmp_path) == packed
    (apple,) = packed  # "only-noto" is in one set, "hand-light-skin" is a variant
    assert (apple.name, apple.group, apple.keywords) == ("red apple", "Food & Drink", ("fruit",))
    assert 'viewBox="-4.0 0.0 24 24"' in apple.svgs["noto"]


def test_a_missing_or_damaged_package_is_named(tmp_path: Path) -> None:
    _write_packages(tmp_path)
    archive = tmp_path / ICONS["flat"].archive
    archive.write_bytes(archive.read_bytes()[:40])
    with pytest.raises(ValueError, match="fluent-emoji-flat.*is damaged"):
        read_concepts(tmp_path)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match="npm pack @iconify-json/fluent-emoji-flat"):
        read_concepts(tmp_path)


def test_a_source_of_other_images_is_refused(tmp_path: Path) -> None:
    _write_packages(tmp_path / "packages")
    with pytest.raises(ValueError, match=f"has 4 images, expected {NUM_IMAGES}"):
        build_emoji(tmp_path / "out", source=tmp_path / "packages")
    with pytest.raises(ValueError, match="64 pixels, got size 32"):
        build_emoji(tmp_path / "out", source=PACK, size=32)
    assert not (tmp_path / "out").exists()


def _write_packages(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    icon = {"body": "<path d='M0 0h8v8z'/>"}
    for style, package in ICONS.items():
        icons = {"red-apple": icon, "hand-light-skin": icon, f"only-{style}": icon}
        files = {"icons.json": {"icons": icons, "width": 16, "height": 24}}
        if style == "noto":
            files["metadata.json"] = {"categories": {"Food & Drink": ["red-apple"]}}
            files["chars.json"] = {"1f34e": "red-apple"}
        _pack(folder / package.archive, files)
    _pack(folder / WORDS.archive, {"en/compact.json": [{"hexcode": "1F34E", "tags": ["fruit"]}]})


def _pack(archive: Path, files: dict[str, object]) -> None:
    root = archive.parent / "build" / archive.stem / "package"
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, "package")
