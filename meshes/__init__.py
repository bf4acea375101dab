"""Meshes: devices, layouts of tensors over them, and communication between them.

`compat` is imported first, so that mesh-tensorflow works for every other module.
"""

from gpt_mesh.meshes import compat as compat
