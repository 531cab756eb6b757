"""The dynamic loading of two domains that tests share."""

from llmshearing.callbacks.dynamic_loading_callback import DynamicLoadingCallback

NAMES = ["cc", "book"]
START = [0.5, 0.5]


def callback(target_loss=(2.0, 3.0), **settings) -> DynamicLoadingCallback:
    return DynamicLoadingCallback(target_loss, START, NAMES, **settings)
