"""A page of HTML about a student."""
