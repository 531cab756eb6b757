"""Offline preparation: folders of text to MDS shards.

prepare -> executors -> stages: tokenize (sources, tokenizer) -> plan (splits) -> pack -> finish (merge_data)
inspect shows the result, manifest.json says what it was made of.
"""
