"""Protocol buffers of the suite; `generate.sh` makes the Python beside them."""
