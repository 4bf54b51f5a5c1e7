"""Whole libraries of models, each looked at once: what is found, and what is missed."""
