"""MIGM-Shortcut (arXiv 2602.23996): a small network moves the last features forward, most steps."""

from swiftmask.methods.shortcut.features import AnyShortcut, ShortcutFeatures
from swiftmask.methods.shortcut.network import Shortcut, ShortcutConfig
from swiftmask.methods.shortcut.released import WEIGHTS_FILES
from swiftmask.methods.shortcut.rotary import RotaryShortcut, RotaryShortcutConfig
from swiftmask.methods.shortcut.weights import RELEASED_SHORTCUT, read_shortcut, write_shortcut

__all__ = [
    "RELEASED_SHORTCUT",
    "WEIGHTS_FILES",
    "AnyShortcut",
    "RotaryShortcut",
    "RotaryShortcutConfig",
    "Shortcut",
    "ShortcutConfig",
    "ShortcutFeatures",
    "read_shortcut",
    "write_shortcut",
]
