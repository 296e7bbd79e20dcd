"""A student, or its export, at work on files."""
