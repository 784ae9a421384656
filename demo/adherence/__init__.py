"""Measures what a video shows, to compare it with what its prompt asked for."""
