"""The alignment search of VITS: which frames of a recording belong to which token of its text.

One public function, `maximum_path`, with an error of its own for likelihoods that are no numbers. The work is done
by a compiled kernel (`_kernel.pyx`, `_search.h`); `reference.py` is the same search in NumPy, for tests. Needs NumPy
alone; torch tensors are understood when torch is there.
"""

from monotonic_align.search import LikelihoodError, maximum_path

__all__ = ["LikelihoodError", "maximum_path"]
