"""Model classes by the names that configurations use."""

import re

from llmshearing.models.composer_llama import ComposerMosaicLlama
from llmshearing.models.composer_pythia import ComposerMosaicPythia

_PATTERNS: dict[str, type[ComposerMosaicLlama]] = {
    r"mosaic_llama.*": ComposerMosaicLlama,
    r"mosaic_pythia.*": ComposerMosaicPythia,
}


def model_class(name: str) -> type[ComposerMosaicLlama]:
    """The class that `model.name` stands for, such as mosaic_llama2_7b or mosaic_pythia_410m.

    Raises:
        ValueError: for a name that is not registered.
    """
    for pattern, cls in _PATTERNS.items():
        if re.fullmatch(pattern, name):
            return cls
    raise ValueError(
        f"model.name is {name!r}; expected a name that begins with mosaic_llama or mosaic_pythia. Other "
        "families are mosaic_llama too: the checkpoint says which, or model.family does."
    )
