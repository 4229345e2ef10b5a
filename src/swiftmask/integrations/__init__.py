"""swiftmask inside other tools: a diffusers pipeline, and nodes of ComfyUI.

Each module needs its tool's library, or none, and nothing else of the package imports it.
"""
