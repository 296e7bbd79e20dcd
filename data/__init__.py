"""Text and labelled tasks: corpora, sentences, GLUE, STS, and samples that pip can install."""
