"""Held-out scores."""

from meshes import compat as compat  # before TensorFlow, which it keeps quiet
