"""A student for others: its card, and the hub."""
