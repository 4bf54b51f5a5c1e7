"""Recipes: whole experiments as data."""
