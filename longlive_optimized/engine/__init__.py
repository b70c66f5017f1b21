"""Time, memory and order: prompts in, blocks of frames out."""
