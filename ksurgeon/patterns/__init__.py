"""The algebra that kernels and matrices share: patterns, merging, factors that are computed."""
