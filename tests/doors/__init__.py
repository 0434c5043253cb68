"""The contract of the pools, played through both doors against a real server."""
