"""What a model is trained on and scored by."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
