"""Checkpoints: found, checked, mapped, merged; and made at random."""


class CheckpointError(ValueError):
    """A checkpoint file that is damaged, is something else, or does not fit the model. The message names the file."""
