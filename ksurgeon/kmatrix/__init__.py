"""The mathematics: patterns, chains, exact constructors, fitting, layers."""
