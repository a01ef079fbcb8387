"""Random access into gzip: the checkpoint table (zinfo), making one, and inflating from one."""
