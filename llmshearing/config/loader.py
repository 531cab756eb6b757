"""The loaders' sections by an earlier path."""

from llmshearing.config import DatasetConfig, LoaderConfig  # noqa: F401
