"""``vits plan``: how many pods a load needs, by simulating the scheduler that serves and the autoscaler above it."""
