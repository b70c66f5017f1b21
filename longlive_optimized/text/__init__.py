"""Prompt to embedding: cleaning, tokenizer, umT5 encoder."""
