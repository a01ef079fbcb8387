"""Tar layers in, EROFS metadata out. Pure: no file, socket or loop is touched here.

On the way in, while a layer is registered: ``tarstream`` walks its tar once (``tarheader``, ``tarmember``,
``tarsparse`` know the formats) and yields each ``entry``, which ``toc`` stores. Then: ``tree`` applies the
tables of all layers, base first; ``layout`` gives every inode its place, and ``writer`` (with ``xattrs``,
``chunks`` and ``ondisk``) writes the metadata. For metadata that somebody else wrote: ``superblock`` reads
what a device needs of it, ``validate`` judges all of it, ``reader`` finds files in it.
"""
