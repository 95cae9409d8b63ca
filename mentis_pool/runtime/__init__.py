"""The embedded runtime: a program of its own, which owns the sandboxes."""
