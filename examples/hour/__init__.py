"""An hour of training on two processor cores."""
