"""Verified spans: the unit in which layers are fetched, checked, decoded and cached."""
