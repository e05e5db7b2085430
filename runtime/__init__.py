"""What a desktop needs to make a video from a bundle, and the words every other folder shares."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends import Denoiser, open_denoiser
    from .errors import SanaEdgeError
    from .linear_dit import LinearDiT
    from .pipeline import Result, Settings, default_settings, generate
    from .video import read_video, write_video

_HOME = {
    "Denoiser": "backends",
    "LinearDiT": "linear_dit",
    "Result": "pipeline",
    "SanaEdgeError": "errors",
    "Settings": "pipeline",
    "default_settings": "pipeline",
    "generate": "pipeline",
    "open_denoiser": "backends",
    "read_video": "video",
    "write_video": "video",
}

__all__ = [
    "Denoiser",
    "LinearDiT",
    "Result",
    "SanaEdgeError",
    "Settings",
    "default_settings",
    "generate",
    "open_denoiser",
    "read_video",
    "write_video",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from its module on first use, so that importing the package stays fast."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
