"""elastix seen from mrseg: its parameter files, running it, and its transforms in plain NumPy."""
