"""The agent: answers pods of one node that ask for instance metadata."""
