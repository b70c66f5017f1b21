"""People, sessions and pictures: the layers above the engine."""
