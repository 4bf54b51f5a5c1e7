"""Plan → convert → record → save → load → revert."""
