"""What the bundled models were trained with: one module a recipe, found by name.

A recipe module exports `recipe() -> config`, a frozen dataclass whose fields `swiftmask train NAME
key=value` may override, with a method `run(folder, on_log) -> Path` that trains, or continues training, and
returns the finished model folder.
"""
