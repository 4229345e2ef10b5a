"""Proof against the references: recorded inputs and outputs, compared with what our models compute.

A case is `NAME.json` with `NAME.safetensors`, or `manifests/NAME.json`. Its kind is how its name begins;
each kind is a module of `verify/kinds` with `check(case) -> list[Check]`, which takes every size from the
case's own config.
"""
