"""The fault lab: what breaks connections to PostgreSQL, on demand, and what pools make of it.

Its tools: `Proxy` (a network that misbehaves), `TlsProxy` (the same under TLS), `ScriptedServer` (a
server that says what it should not), `Cluster` (a primary and its standby), and `server_faults`
(what happens to a real server). A fault is in force when the call that makes it returns, and is
healed when its ``with`` block ends.

A process that forks must not hold a `Proxy` or a `ScriptedServer`: the child's copies of their
sockets would keep connections open that the parent has cut.
"""
