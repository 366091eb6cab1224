"""The same fits by Pyro, NumPyro, PyTorch written by hand, and the engines of this suite."""
