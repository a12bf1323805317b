"""PyTorch modules of the networks in the registry, keyed like their published state dicts."""
