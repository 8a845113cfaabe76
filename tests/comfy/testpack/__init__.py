"""A tiny node pack for the tests: slow, failing, noisy and watching nodes. V1 style."""

from .nodes import NODE_CLASS_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS"]
