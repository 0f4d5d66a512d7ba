"""Which pod may have which role."""
