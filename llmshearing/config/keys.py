"""The names of `llmshearing.config` by an earlier path."""

from llmshearing.config import *  # noqa: F403
