"""MARVAL and MARVAL-RL (arXiv 2511.15190): a diffusion head in one call, then tuned by a reward."""

from swiftmask.methods.marval.student import Student, make_student
from swiftmask.methods.marval.weights import read_student, write_student

__all__ = [
    "Student",
    "make_student",
    "read_student",
    "write_student",
]
