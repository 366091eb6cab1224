"""The cases of `race.py`, fitted by Pyro, NumPyro, hand-written PyTorch and the engines of this suite."""
