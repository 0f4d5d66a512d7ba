"""The documentation as its readers see it: in a real browser, on a machine without internet."""
