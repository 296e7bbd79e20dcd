"""Distil a BERT sentence encoder into a small BiLSTM, without choosing a task first."""

from importlib.metadata import version

__version__ = version("sentence-distill")
