"""Who is at an address, and what are its credentials."""
