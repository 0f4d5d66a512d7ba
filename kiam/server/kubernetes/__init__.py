"""Pods and namespaces, read from the Kubernetes API, and Events written to it."""
