"""Runs: the loop, its engine, and what they need."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
