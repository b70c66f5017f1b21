"""What the documents say, taken apart and tried: ``tests/docs/run_commands.py`` runs it."""

from longlive_optimized.cli.threads import share_the_machine

share_the_machine()  # before torch is imported; commands that are run inherit it
