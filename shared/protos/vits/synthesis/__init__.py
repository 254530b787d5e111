"""Package ``vits.synthesis`` of the protocol."""
