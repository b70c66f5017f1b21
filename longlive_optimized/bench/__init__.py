"""End-to-end measurements and the plain network they are compared with."""
