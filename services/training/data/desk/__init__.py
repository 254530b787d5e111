"""Pages for one person at their own machine: to review transcripts, and to record sentences."""
