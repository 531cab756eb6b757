"""What the server that ranks are forked from (`processes.py`) imports and finds out once for all of them."""

from composer.utils.collect_env import get_cpu_model

import llmshearing.training  # noqa: F401

get_cpu_model()  # kept by Composer; it takes a process of its own and a second
