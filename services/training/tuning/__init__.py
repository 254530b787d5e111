"""``vits tune``: find a run's settings instead of guessing them. Nothing here saves or publishes a model."""
