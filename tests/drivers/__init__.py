"""Tests of the drivers: what they tell a pool of connections, without a pool."""
