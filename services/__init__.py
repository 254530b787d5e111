"""The programs of the suite: training, export and synthesis, and the command line that starts them."""
