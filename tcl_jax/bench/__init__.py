"""Measures how fast the method is here, alone or beside the official code."""
