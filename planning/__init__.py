"""What a run takes before it is started: parameters, FLOPs, memory, traffic, and the layouts that take least."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
