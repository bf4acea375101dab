"""Optimizers, one a file, with clipping and learning-rate schedules, as mesh operations."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
