"""gRPC with the server."""
