"""How a training step is cut up: microbatches, buckets of gradients, optimizer state over replicas."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
