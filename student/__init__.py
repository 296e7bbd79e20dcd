"""Stage two and after: the stream of training batches, the student, its training and evaluation."""
