"""The model, as mesh-tensorflow layers."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
