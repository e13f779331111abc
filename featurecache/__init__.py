"""Ground floor: data sets, backbones and features on disk. Knows nothing of heads or training.

The rooms: `datasets` (images in), `backbones` (frozen models), `stores` (features on disk) and `sources` (features to
train on). Each room's `__init__` states its contract; a file of a room is one data set, backbone source or store format.
"""

__version__ = "0.1.0"
