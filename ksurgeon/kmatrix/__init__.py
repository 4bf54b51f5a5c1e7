"""K-matrices: structures, exact constructors, layers."""
