"""Meshes: which devices there are, how tensors are laid out over them, and how they talk to each other.

Whatever is imported from here finds mesh-tensorflow working: `compat` comes first.
"""

from gpt_mesh.meshes import compat as compat
