"""Meshes: which devices there are, how tensors are laid out over them, and how they talk to each other."""
