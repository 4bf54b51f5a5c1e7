"""Plan → operate → record → save → load → revert."""
