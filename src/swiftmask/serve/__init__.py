"""Servers: images over HTTP (`app`) and the scores of a reward (`reward_app`), behind the same limits.

Importing the package imports none of the libraries of the extra `serve`.
"""
