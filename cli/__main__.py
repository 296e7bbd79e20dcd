"""`python -m sentence_distill.cli`, for launchers such as torchrun."""

from sentence_distill.cli.main import main

main()
