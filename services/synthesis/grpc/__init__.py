"""gRPC: ``vits.synthesis.v1``, with health and reflection.

``requests`` checks what is asked for, ``servicer`` answers it, ``incremental`` speaks texts that arrive in pieces,
``errors`` tells what went wrong, ``tls`` and ``server`` are the port.
"""

from services.synthesis.grpc.errors import ERRORS
from services.synthesis.grpc.server import SERVICE, GrpcServer
from services.synthesis.grpc.tls import Tls

__all__ = ["ERRORS", "SERVICE", "GrpcServer", "Tls"]
