"""Microbenchmarks of the operators: ``runner`` has the protocol, each other file an operator's shapes and counts."""
