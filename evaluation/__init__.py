"""Held-out scores."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
