"""Builds the alignment kernel; everything else about the distribution is in pyproject.toml."""

import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

# Apple's compiler ships no OpenMP: there the kernel is built for one thread. -ffast-math must stay out: the
# kernel relies on -inf and has to see NaN. It picks the machine's vectors at run time (see _search.h).
OPENMP = [] if sys.platform == "darwin" else ["-fopenmp"]

setup(
    ext_modules=cythonize(
        [
            Extension(
                "monotonic_align._kernel",
                ["monotonic_align/_kernel.pyx"],
                depends=["monotonic_align/_search.h"],
                extra_compile_args=["-O3", *OPENMP],
                extra_link_args=OPENMP,
            )
        ],
        language_level=3,
    )
)
