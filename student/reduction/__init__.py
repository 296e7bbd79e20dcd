"""Smaller students of trained ones."""
