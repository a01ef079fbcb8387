"""``blockgate demo``: the main job on this machine's own files."""
