"""The model, as mesh-tensorflow layers."""

from meshes import compat as compat  # before TensorFlow, which it keeps quiet
