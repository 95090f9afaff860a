"""Recognises clips by a few examples of each class, without training.

recognizer.py is the class for Python, fsar_jax/recognize.py the command.
"""
