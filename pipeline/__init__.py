"""Stage one: the plan, the teacher, exact-length batches, and the shard format."""
