"""The doors for psycopg2, black-box, on a real server.

The folder is not called `psycopg2`: pytest puts its parent on the path, where it would be found
in the library's place.
"""
