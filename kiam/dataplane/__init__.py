"""The part of the node that sends pods' metadata traffic to the agent: what a dataplane is, and those there are."""
