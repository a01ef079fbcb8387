"""Where bytes come from: a range-capable URL, and what makes it quick and dependable.

``http`` (one request) → ``retry`` (resume, back off, one deadline) → ``cache`` (what was read, single-flight)
→ ``readahead`` (what will be read). :func:`nbd_client.source.stack.open_source` stacks them.
"""
