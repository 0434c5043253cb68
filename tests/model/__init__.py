"""The third runtime: it explores what threads and asyncio may do with the shipped pool."""
