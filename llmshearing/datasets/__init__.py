"""MDS shards to batches.

loader_config -> load_text_dataloader -> streaming_dataset: what comes next (mixture), reading it (sequence_folder)
"""
