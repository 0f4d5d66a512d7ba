"""The mutating webhook that gives pods what the container credentials endpoint needs."""
