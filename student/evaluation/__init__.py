"""What students and other models are worth and cost."""
