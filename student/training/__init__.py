"""Stage two: from shards to a student."""
