"""The demonstration: a bank under load, a server restart in the middle, and the proof.

`bank` is the money, `crowd` the clients that move it, `meter` what is measured, `server` the
PostgreSQL below, `proof` what must be true at the end, `screen` the drawing; `run` tells the story.
"""
