"""Devices: what they are made of, how they come to be, and how they are read."""
