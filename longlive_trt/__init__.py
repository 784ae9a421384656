"""LongLive video generation on compiled engines."""

__version__ = "0.1.0"
