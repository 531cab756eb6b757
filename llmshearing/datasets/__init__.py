"""MDS shards to batches.

a section of the configuration -> opening -> load_text_dataloader -> streaming_dataset, which asks
mixture for what comes next and sequence_folder for what it holds; that reads a
shard_folder, whose files mds_index checks and remote fetches
"""
