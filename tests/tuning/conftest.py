"""The tiny model of the evaluation's tests."""

from tests.evaluation.conftest import config, hf, tokenizer_folder

assert config  # a fixture
assert hf
assert tokenizer_folder
