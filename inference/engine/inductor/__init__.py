"""Everything that knows the private parts of torch's Inductor."""

__all__: list[str] = []
