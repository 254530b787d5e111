"""A voice at work: engine, noise, durations, window plan. Never imports torch."""
