"""The one way in for what others wrote: files, documents, fields, numbers and tensors.

Nothing that is read is trusted: its kind, its size, its depth and the shape of all its fields are
checked once, here, before anything else looks at it. docs/robustness.md has the limits.
"""
