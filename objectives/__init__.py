"""What a model learns: objectives, one a file."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
