"""Words for people."""

SIBILANTS = ("s", "x", "ch", "sh")


def plural(count: int, noun: str) -> str:
    """Such as "1 image", "2 images", "2 classes"."""
    ending = "" if count == 1 else "es" if noun.endswith(SIBILANTS) else "s"
    return f"{count} {noun}{ending}"
