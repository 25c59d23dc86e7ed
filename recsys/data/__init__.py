"""From canonical tables to a sharded, split, densely numbered dataset: validate, vocabulary, split, shards, graphs,
text vectors (writers, on Ray Data) and :class:`~recsys.data.dataset.PreparedDataset` (reader, knows no Ray).
"""
