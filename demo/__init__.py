"""The demo model: a procedural world, captions for it, and what trains a small model on both."""
