"""`python -m align_detr COMMAND ...`: the command line of the workbench."""

from detrkit.commands.main import main

if __name__ == "__main__":
    main()
