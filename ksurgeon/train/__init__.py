"""Distillation and fine-tuning of converted models."""
