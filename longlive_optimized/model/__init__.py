"""The network: a causal Wan transformer over a KV cache that is a ring."""
