#!/bin/sh
# Generates the Python of the protocol beside the .proto files: messages, service, and types for mypy.
# Usage: shared/protos/generate.sh [OUTPUT_ROOT]    (run with the environment of the suite active)
set -eu
output=$(realpath "${1:-$(dirname "$0")/../..}")
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python}" -m grpc_tools.protoc --proto_path=. \
    --python_out="$output" --grpc_python_out="$output" --mypy_out="$output" --mypy_grpc_out="$output" \
    shared/protos/vits/synthesis/v1/synthesis.proto
