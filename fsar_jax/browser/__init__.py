"""Recognises clips in a browser: app.py answers its requests, page.py is what it shows.

`fsar_jax/serve.py` is the command.
"""
