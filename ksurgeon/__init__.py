"""ksurgeon: K-matrices in place of the linear maps of existing models."""
