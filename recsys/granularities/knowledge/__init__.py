"""Triples about items from a knowledge graph, by training or by counting."""
