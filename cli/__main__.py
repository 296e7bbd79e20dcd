"""`python -m sentence_distill.cli`, for launchers such as torchrun."""

from sentence_distill.cli.main import main

# Spawned processes, such as the readers of sd embed, import this module and must not run the command.
if __name__ == "__main__":
    main()
