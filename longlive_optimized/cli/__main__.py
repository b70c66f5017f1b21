"""``python -m longlive_optimized.cli``, as torchrun starts it."""

from . import main

main()
