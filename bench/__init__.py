"""Benchmarks: forebay and its peers, side by side in one process."""
