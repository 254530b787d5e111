"""Package ``vits`` of the protocol."""
