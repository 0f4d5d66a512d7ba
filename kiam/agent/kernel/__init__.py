"""What the kernel knows of the routes to pods."""
