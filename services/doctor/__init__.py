"""``vits doctor``: whether this machine has what the commands need, and what to do where it has not."""
