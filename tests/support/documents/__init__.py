"""What the documents say, taken apart and tried: ``tests/docs/run_commands.py`` runs it."""
