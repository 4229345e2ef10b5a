"""Accelerators: one folder each, found by folder name. They see a base model through core/protocol.py."""
