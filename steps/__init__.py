"""How a training step is divided: microbatches, buckets of gradients, optimizer state split over replicas."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
