"""The instance metadata protocol, as pods speak it."""
