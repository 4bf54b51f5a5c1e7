"""Distillation and fine-tuning of operated models."""
