"""The `sd` command: arguments and messages only."""
