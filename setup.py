"""Builds the alignment kernel; everything else about the distribution is in pyproject.toml."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    ext_modules=cythonize(
        [
            Extension(
                "monotonic_align._kernel",
                ["monotonic_align/_kernel.pyx"],
                extra_compile_args=["-O3", "-fopenmp"],
                extra_link_args=["-fopenmp"],
            )
        ],
        language_level=3,
    )
)
