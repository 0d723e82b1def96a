"""The code of every deployed text model. `deploy` copies this folder into each version.

Triton imports it as a package that is named by the version's number: its modules find each other by relative
imports only.
"""
