"""A training step as a graph of tensor operations."""

__all__: list[str] = []
