"""The gRPC service that agents ask."""
