"""Numbers as a person reads them."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 block``, ``2 blocks``; ``plural`` is of a noun that does not take an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def byte_size(size: float) -> str:
    """``1.23 GB``, ``4.5 MB``, ``0.7 kB``."""
    if size >= 1e9:
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """``0:07``, ``12:30``, ``1:00:00``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def roughly(seconds: float) -> str:
    """An estimate: ``less than a minute``, ``about 20 minutes``, ``about 3 hours``."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 100 * 60:
        return f"about {counted(round(seconds / 60), 'minute')}"
    return f"about {counted(round(seconds / 3600), 'hour')}"
