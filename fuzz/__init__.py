"""What somebody else controls, thrown at what reads it.

``make fuzz`` runs each target with atheris, guided by coverage.

A target takes bytes and raises only if a promise is broken. The files of corpus/ are where the fuzzer starts, and those
that once broke a promise stay there; ``make test`` runs them through their targets.
"""
