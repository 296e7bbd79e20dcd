"""A student, or a teacher, on a task with labels."""
