"""The model's functions, compiled, over one store of variables; and checkpoints of it."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
