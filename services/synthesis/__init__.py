"""The serving process: HTTP, gRPC, lifecycle. Never imports torch."""
