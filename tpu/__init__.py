"""Everything that only TPUs need: TPUEstimator, its loop and session, SIMD meshes."""

from gpt_mesh.meshes import compat as compat  # before TensorFlow, which it keeps quiet
