"""The core and what carries out its orders, without a server and in no time."""
