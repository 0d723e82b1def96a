"""`bertmp bench`: a served model under load, in a closed or an open loop.

`load` says what is asked of the server, `perf_analyzer` and `python_clients` ask it, `figures` sums up what
they recorded, `page` draws it.
"""
