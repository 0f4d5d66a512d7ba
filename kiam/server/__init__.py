"""The server: which pod may have which role, and the credentials of those roles."""
