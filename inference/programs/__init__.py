"""Running a Pyro model and guide: validated, isolated, bound to parameters, drawn from, scored."""

__all__: list[str] = []
