"""The network: a causal Wan transformer over a ring of keys and values."""
