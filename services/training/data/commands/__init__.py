"""The commands of ``vits data`` that make datasets, a module each: ``add`` its arguments, ``run`` it."""
