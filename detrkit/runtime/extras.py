"""How optional packages are installed: the extras of `setup.py`."""

PROJECT = "."  # what pip installs, in a clone; once the package is on an index, its name


def pip_install(*extras: str) -> str:
    """The command that installs extras, for messages."""
    return f'pip install "{PROJECT}[{",".join(extras)}]" in a clone of this project'
