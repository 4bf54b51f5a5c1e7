"""Damaged and hostile files: none may hang, take memory, or raise anything but ksurgeon's errors."""
