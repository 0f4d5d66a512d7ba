"""STS, and the credentials it issues."""
