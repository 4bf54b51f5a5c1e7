"""What ksurgeon gets from this package by its entry points."""
