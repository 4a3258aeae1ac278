"""Small helpers shared by the models: numerics (`misc`) and the state of the process group (`dist`)."""

from .dist import get_world_size, is_dist_avail_and_initialized
from .misc import interpolate, inverse_sigmoid

__all__ = ["get_world_size", "interpolate", "inverse_sigmoid", "is_dist_avail_and_initialized"]
