"""Programs that show the suite at work."""
