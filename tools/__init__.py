"""What only the project itself runs."""
