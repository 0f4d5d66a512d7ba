"""A new user, on a machine with nothing but a minimal Debian."""
